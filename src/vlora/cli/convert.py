"""`vlora convert`: checkpoints of others become ours."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._eyes import AsJson
from ._output import command, err, print_json, say

if TYPE_CHECKING:
    from ..export import Conversion

_PART = {"language_model": "language model", "generator": "generator", "vision": "vision encoder"}

convert = typer.Typer(help="Convert a checkpoint of others to a full checkpoint of ours.", no_args_is_help=True)


@convert.callback()
def group() -> None:
    """Keep `authors` a command of its own, though it is the only one."""


@convert.command()
@command
def authors(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with a checkpoint of the VLoRA authors.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A folder that does not exist yet, or is empty.")],
    vision: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Its CLIP; default: where its config.json says, beside it."),
    ] = None,
    llm: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Its language model, if SRC holds mm_projector.bin only."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a checkpoint of the VLoRA authors (`model_type: llava_vlora`)."""
    from ..export import convert_authors

    with _bar() as progress:
        done = convert_authors(source, destination, vision=vision, language_model=llm, progress=progress)
    if as_json:
        print_json(to_json(done))
    else:
        _show(done)


def to_json(done: Conversion) -> dict[str, Any]:
    """A conversion as one JSON object."""
    facts = asdict(done)
    return facts | {"bytes": done.nbytes, "recomputed": list(done.recomputed)}


@contextmanager
def _bar() -> Generator[Callable[[int, int], None]]:
    """A bar with the speed and the time left, where somebody watches."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = err()
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("convert", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(done: Conversion) -> None:
    from rich.filesize import decimal

    parts = ", ".join(f"{count} of the {_PART[part]}" for part, count in done.written.items())
    files = f"{done.files} file{'' if done.files == 1 else 's'}"
    say(f"converted   {done.source}")
    say(f"to          {done.destination}  ({decimal(done.nbytes)} in {files}, {', '.join(done.dtypes)})")
    say(f"tensors     {done.read} of theirs are {sum(done.written.values())} of ours: {parts}; none is new")
    if done.recomputed:
        more = f" and {len(done.recomputed) - 1} more" if done.recomputed[1:] else ""
        say(f"recomputed  {done.recomputed[0]}{more}: as the model computes them itself")
    if done.not_vision:
        say(f"left out    {done.not_vision} tensors of the CLIP that are not part of its vision tower")
    say(f'use it      vlora ask IMAGE "What is this?" --model {done.destination}')
