"""`vlora ask ALBUM`: one question about many images, none of which is looked at again."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AlbumError, InputError
from ._eyes import load_eyes, milliseconds
from ._output import note, out, print_json, printable

if TYPE_CHECKING:
    from ..album import Album, Answer

EVERY_SECONDS = 10.0


def ask_album(
    folder: Path,
    question: str,
    *,
    patterns: Sequence[str] | None,
    model: str | None,
    device: str | None,
    batch_size: int,
    max_new_tokens: int,
    as_json: bool,
) -> None:
    """Answer a question about the images of an album, and print a table.

    Args:
        folder: of the album.
        question: what to ask.
        patterns: see `Album.select`; None for all files.
        model: None: the one the album was made with.
        device: as in `load_eyes`.
        batch_size: pictures at a time.
        max_new_tokens: length of the longest answer.
        as_json: print one JSON object.
    """
    from .. import album as albums

    album = albums.open(folder)
    total = sum(1 for _ in album.select(*(patterns or ())))
    if not total:
        raise InputError(
            f"No image of the album {str(folder)!r} fits {', '.join(patterns or ['--all'])}: `vlora album info "
            f"{folder} --list` shows their paths."
        )
    name = model or _model_of(album)
    eyes, load_ms = load_eyes(name, device)
    started = told = time.perf_counter()
    answers: list[Answer] = []
    for answer in album.ask(eyes, question, select=patterns, batch_size=batch_size, max_new_tokens=max_new_tokens):
        answers.append(answer)
        if time.perf_counter() - told > EVERY_SECONDS:
            told = time.perf_counter()
            note(f"{len(answers)} of {total} images  {len(answers) / (told - started):.1f} answers/s")
    answer_ms = milliseconds(started)
    if as_json:
        print_json(
            {
                "album": str(folder),
                "question": question,
                "model": name,
                "visual_tokens": 0,
                "answers": [{"image": one.entry.path, "hash": one.entry.image, "answer": one.text} for one in answers],
                "timings_ms": {"load": load_ms, "answers": answer_ms},
            }
        )
    else:
        _show(answers)


def _model_of(album: Album) -> str:
    """The model that an album names; an album of somebody else does not make us fetch one."""
    if album.model == "nano" or Path(album.model).is_dir():
        return album.model
    raise AlbumError(
        f"The album {str(album.folder)!r} was made with the model {album.model!r}, which is not a folder here: give "
        "--model."
    )


def _show(answers: Sequence[Answer]) -> None:
    """A table for a person, lines with a tab for a pipe."""
    if not sys.stdout.isatty():
        for one in answers:
            sys.stdout.write(printable(f"{one.entry.path}\t{' '.join(one.text.split())}\n"))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    table.add_column("answer", overflow="fold")
    for one in answers:
        table.add_row(Text(printable(one.entry.path)), Text(printable(one.text)))
    out().print(table)
