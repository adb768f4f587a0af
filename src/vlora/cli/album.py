"""`vlora album`: what is in an album, whether it is whole, and how to export, join and prune it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import InputError
from ._eyes import AsJson
from ._output import DAMAGED, command, err, note, print_json, say

SHOWN = 20

album = typer.Typer(help="Look after albums, which `vlora encode` makes.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="ALBUM", help="The folder of an album.")]
Select = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Images whose path ends so, as in '2026/*.jpg', or hash:3fa9; repeatable."),
]


@album.command()
@command
def info(
    folder: Folder,
    listing: Annotated[bool, typer.Option("--list", help="Show every image, and every unreadable file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is in an album."""
    from .. import album as albums

    opened = albums.open(folder)
    facts = opened.info()
    problems = opened.problems() if listing or as_json else []
    if as_json:
        shown = facts.to_dict() | {"problems": [problem._asdict() for problem in problems]}
        if listing:
            shown["list"] = [entry._asdict() for entry in opened.select()]
        print_json(shown)
        return
    from rich.filesize import decimal

    targets, layers, dim = facts.shape
    say(f"files       {facts.files} that show {facts.images} pictures, {facts.unreadable} unreadable")
    say(
        f"size        {decimal(facts.bytes)} in {facts.shards} shards and the index, "
        f"{facts.bytes_per_image} bytes an image"
    )
    say(f"parameters  {targets} targets x {layers} layers x {dim}, {facts.dtype}")
    say(f"model       {facts.model}  (generator {facts.identity.generator[:12]})")
    say(f"made        {facts.created}")
    if facts.unused:
        say(f"unused      {facts.unused} pictures that no file shows: `vlora album prune {folder}` takes them out")
    for entry in opened.select() if listing else ():
        say(f"{entry.image[:12]}  {entry.path}")
    for problem in problems:
        say(f"unreadable    {problem.reason}")


@album.command()
@command
def verify(folder: Folder, as_json: AsJson = False) -> None:
    """Read all of an album, and compare it with what was written; exit code 4 if it is damaged."""
    from .. import album as albums

    with _bar("pictures") as progress:
        verdict = albums.verify(albums.open(folder), progress=progress)
    if as_json:
        print_json(verdict.to_dict())
    else:
        for one in verdict.damage[:SHOWN]:
            say(f"damaged  {one.where}: {one.what}")
        if len(verdict.damage) > SHOWN:
            say(f"... and {len(verdict.damage) - SHOWN} more")
        state = "clean" if verdict.clean else f"{len(verdict.damage)} damages"
        say(f"{state}: {verdict.files} files, {verdict.images} pictures")
        if verdict.leftovers:
            say(f"{len(verdict.leftovers)} leftovers of a writer that was killed; the next one removes them")
        if not verdict.clean:
            say(f"repair it: vlora album prune {folder} --damaged, then encode its images again")
    if not verdict.clean:
        raise typer.Exit(DAMAGED)


@album.command()
@command
def export(
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="NAME.safetensors.")],
    select: Select = None,
    every: Annotated[bool, typer.Option("--all", help="Every image.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the visual parameters of some images as one safetensors file, with a JSON listing beside it."""
    from .. import album as albums

    if bool(select) == every:
        raise InputError("Say which images to export: either --select PATTERN, or --all for all.")
    done = albums.export(albums.open(folder), output, select=select)
    if as_json:
        print_json(done.to_dict())
    else:
        say(f"{done.images} pictures of {done.files} files are in {done.parameters}, listed in {done.listing}")


@album.command()
@command
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="ALBUM...", help="Albums of one model.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="ALBUM", help="Where to; made if need be.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8"] | None,
        typer.Option(help="Precision of a new album, the same or less; default: that of the first."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Join albums of one model, or copy one at a smaller precision."""
    from .. import album as albums

    with _bar("files") as progress:
        done = albums.merge(sources, output, dtype=dtype, progress=progress)
    if as_json:
        print_json(done.to_dict())
    else:
        say(f"{done.files} files went into {done.album}, with {done.images} pictures that were new to it")


@album.command()
@command
def prune(
    folder: Folder,
    select: Select = None,
    gone: Annotated[bool, typer.Option("--gone", help="Images whose files are not there any more.")] = False,
    damaged: Annotated[bool, typer.Option("--damaged", help="What `verify` finds damaged.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take images out of an album, and close the gaps: pictures that no file shows any more always go."""
    from .. import album as albums

    done = albums.prune(folder, select=select, gone=gone, damaged=damaged, dry_run=dry_run)
    if as_json:
        print_json(done.to_dict())
        return
    for path in done.files[:SHOWN]:
        note(path)
    if len(done.files) > SHOWN:
        note(f"... and {len(done.files) - SHOWN} more")
    would = "taken out" if done.done else "would be taken out"
    say(f"{len(done.files)} files and {done.images} pictures {would}, {done.bytes_freed} bytes freed")


@contextmanager
def _bar(unit: str) -> Generator[Callable[[int, int], None] | None]:
    """A bar on stderr where somebody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=err(), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
