"""`vlora ask`: a question about an image."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ImageError, InputError
from ._eyes import AsJson, Device, Model, load_eyes, timed_answer
from ._output import command, print_json, printable, say

if TYPE_CHECKING:
    from PIL import Image

    from ..api import Eyes

STDIN = "-"


@command
def ask(
    image: Annotated[str, typer.Argument(help="A PNG, JPEG, WEBP, GIF, BMP or TIFF file; - reads it from stdin.")],
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    more: Annotated[
        list[str] | None,
        typer.Option("--and", metavar="IMAGE", help="One more image the question is about; as often as you like."),
    ] = None,
    model: Model = "nano",
    device: Device = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the longest answer.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Answer a question about an image, or about several: the model wears the sum of their ΔW."""
    # All are checked before the model is loaded, which takes seconds.
    images = [image, *(more or [])]
    pictures = read_images(images)
    check_question(question)
    eyes, load_ms = load_eyes(model, device)
    if not as_json and sys.stdout.isatty():
        _stream(eyes, pictures, question, max_new_tokens)
        return
    answer = timed_answer(eyes, pictures, question, max_new_tokens)
    if not as_json:
        say(answer.text)
        return
    print_json(
        {
            "answer": answer.text,
            "images": images,
            "question": question,
            "model": model,
            "visual_tokens": 0,
            "text_tokens": answer.text_tokens,
            "visual_parameters_bytes": answer.visual_parameters_bytes,
            "timings_ms": {"load": load_ms, "encode": answer.encode_ms, "answer": answer.answer_ms},
        }
    )


def read_image(image: str) -> Image.Image:
    """Decode the image of a path, or of stdin.

    Raises:
        ImageError: not a usable image.
    """
    from ..data.images import MAX_BYTES, open_image

    if image != STDIN:
        return open_image(image)
    if sys.stdin.isatty():
        raise ImageError("There is no image on stdin: pipe one in, as in `vlora ask - QUESTION < photo.png`.")
    return open_image(sys.stdin.buffer.read(MAX_BYTES + 1))


def read_images(images: Sequence[str]) -> list[Image.Image]:
    """Decode several images, of which one at most comes from stdin.

    Raises:
        ImageError: not a usable image.
        InputError: stdin named twice.
    """
    if list(images).count(STDIN) > 1:
        raise InputError("Only one image can come from stdin: give the path of each other one.")
    return [read_image(image) for image in images]


def check_question(question: str) -> None:
    """Refuse a question that no model can read.

    Raises:
        InputError: empty, or not text.
    """
    if not question.strip():
        raise InputError("The question is empty: write what you want to know about the image.")
    try:
        question.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError("The question is not UTF-8 text: write it in a terminal that uses UTF-8.") from error


def _stream(eyes: Eyes, pictures: Sequence[Image.Image], question: str, max_new_tokens: int) -> None:
    """Write the answer as it comes."""
    begun = False
    for piece in eyes.stream(eyes.perceive(pictures), question, max_new_tokens=max_new_tokens):
        text = printable(piece if begun else piece.lstrip())
        begun = begun or bool(text)
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
