"""`vlora ask`: a question about an image."""

from __future__ import annotations

import sys
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
    model: Model = "nano",
    device: Device = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the longest answer.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Answer a question about an image."""
    # Both are checked before the model is loaded, which takes seconds.
    picture = read_image(image)
    check_question(question)
    eyes, load_ms = load_eyes(model, device)
    if not as_json and sys.stdout.isatty():
        _stream(eyes, picture, question, max_new_tokens)
        return
    answer = timed_answer(eyes, picture, question, max_new_tokens)
    if not as_json:
        say(answer.text)
        return
    print_json(
        {
            "answer": answer.text,
            "image": image,
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


def _stream(eyes: Eyes, picture: Image.Image, question: str, max_new_tokens: int) -> None:
    """Write the answer as it comes."""
    begun = False
    for piece in eyes.stream(eyes.perceive(picture), question, max_new_tokens=max_new_tokens):
        text = printable(piece if begun else piece.lstrip())
        begun = begun or bool(text)
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
