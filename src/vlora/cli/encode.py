"""`vlora encode`: many images become an album."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ._eyes import AsJson, Device, Model, Views, load_eyes
from ._output import INCOMPLETE, command, err, note, print_json, say

if TYPE_CHECKING:
    from ..album import Progress, Report

LINE_SECONDS = 10.0  # between two lines of progress in a log
SHOWN = 10


@command
def encode(
    paths: Annotated[list[Path], typer.Argument(help="Folders, images, tars, or text files with a path a line.")],
    album: Annotated[Path, typer.Option("--output", "-o", metavar="ALBUM", help="The album, made if need be.")],
    model: Model = "nano",
    device: Device = None,
    views: Views = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode; default: one for each further core, at most 8.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time, and what a crash can cost.")] = 32,
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8"] | None,
        typer.Option(help="Precision of what is stored; default: the album's, float32 for a new one."),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="On a Ray cluster: auto, host:port, or local to start one here."),
    ] = None,
    reread: Annotated[bool, typer.Option("--reread", help="Read files again that look unchanged.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at many images once, and keep what was seen in an album."""
    from .. import album as albums
    from .. import loading
    from ..album.cluster import encode_on_cluster, require_ray
    from ..album.sources import check

    check(paths)  # before the model is loaded, which takes seconds
    if ray is not None:
        require_ray()
    name = _name(model)
    eyes, _ = load_eyes(name, device, views)
    wishes: dict[str, Any] = {
        "batch_size": batch_size,
        "workers": workers,
        "dtype": dtype,
        "model": name,
        "reread": reread,
    }
    with _progress() as progress:
        if ray is None:
            report = albums.encode(eyes, paths, album, progress=progress, **wishes)
        else:
            again = functools.partial(loading.load, name, device=device, views=views)
            report = encode_on_cluster(eyes, paths, album, address=ray, load=again, progress=progress, **wishes)
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report)
    if report.unreadable:
        raise typer.Exit(INCOMPLETE)


def _name(model: str) -> str:
    """A folder by its full path, so that the album finds its model from anywhere."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


@contextmanager
def _progress() -> Generator[Callable[[Progress], None]]:
    """A bar on stderr for a person, a line now and then for a log."""
    if not sys.stderr.isatty():
        told = time.monotonic()

        def line(progress: Progress) -> None:
            nonlocal told
            if time.monotonic() - told >= LINE_SECONDS:
                told = time.monotonic()
                note(f"{progress.done} of {progress.total} images  {_words(progress)}")

        yield line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"), console=err()) as bar:
        task = bar.add_task("", total=None, words="")
        yield lambda now: bar.update(task, completed=now.done, total=now.total, words=_words(now))


def _words(progress: Progress) -> str:
    words = f"{progress.images_per_second:.1f} images/s"
    if progress.seconds_left is not None:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        words += f"  {hours}:{minutes:02}:{seconds:02} left"
    return words + (f"  {progress.unreadable} unreadable" if progress.unreadable else "")


def _show(report: Report) -> None:
    for problem in report.unreadable[:SHOWN]:
        note(f"unreadable: {problem.reason}")
    if len(report.unreadable) > SHOWN:
        note(f"... and {len(report.unreadable) - SHOWN} more: `vlora album info {report.album} --list` shows all")
    say(
        f"{report.found} images: {report.encoded} encoded, {report.repeated} of pictures that were there, "
        f"{report.unchanged} unchanged, {len(report.unreadable)} unreadable; {report.seconds:.1f} s, "
        f"{report.images_per_second:.1f} images/s"
    )
    if report.passed_over:
        others = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in report.passed_over.items())
        say(f"passed over, no images by their ending: {others}")
    say(f'ask it: vlora ask {report.album} --all "What is this?"')
