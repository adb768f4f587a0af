"""`vlora ask`: a question about an image, or about the images of an album."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..album import is_album
from ..errors import ImageError, InputError
from ._ask_album import ask_album
from ._eyes import AsJson, Device, load_eyes, timed_answer
from ._output import command, print_json, printable, say

if TYPE_CHECKING:
    from PIL import Image

    from ..api import Eyes

STDIN = "-"


@command
def ask(
    image: Annotated[
        str, typer.Argument(help="A PNG, JPEG, WEBP, GIF, BMP or TIFF file, - for stdin, or the folder of an album.")
    ],
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    more: Annotated[
        list[str] | None,
        typer.Option("--and", metavar="IMAGE", help="One more image the question is about; as often as you like."),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Of an album: images whose path ends so, as in '2026/*.jpg', or hash:3fa9; as often as you like.",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Of an album: every image.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="nano, a folder with a checkpoint, or a hub id; default: nano, or the album's own."),
    ] = None,
    device: Device = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the longest answer.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Of an album: images at a time.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Answer a question about an image, or about several: the model wears the sum of their ΔW.

    Of an album, answer it about each image that is selected.
    """
    if _is_album(image, select, every, more):
        check_question(question)
        ask_album(
            Path(image),
            question,
            patterns=None if every else select,
            model=model,
            device=device,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            as_json=as_json,
        )
        return
    model = "nano" if model is None else model
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


def _is_album(image: str, select: list[str] | None, every: bool, more: list[str] | None) -> bool:
    """Whether an album is asked, which then must be said how much of it; or an image, which has no parts."""
    chosen = bool(select) or every
    if not is_album(image):
        if chosen:
            raise InputError(f"{image!r} is no album, so that --select and --all mean nothing: leave them out.")
        return False
    if more:
        raise InputError("--and joins single images, and an album is many: ask it with --select or --all.")
    if not chosen or (select and every):
        raise InputError(f"{image!r} is an album: say which of its images with --select PATTERN, or --all for all.")
    return True


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
