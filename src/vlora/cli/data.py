"""`vlora data`: what is in the data, making shards of them, and fetching them (`_fetch.py`)."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ._eyes import AsJson
from ._fetch import fetch
from ._output import MISTAKE, command, err, note, out, print_json, printable, say

if TYPE_CHECKING:
    from ..data.inspection import Findings, Rendered, Some
    from ..data.sample import Source
    from ..data.shards import Conversion, Input
    from ..train.config import TrainConfig

LISTED = 10
"""Problems that are shown; --json has all."""

STREAMED = 10_000
"""Samples of a stream that are looked at if all are asked for."""

data = typer.Typer(help="Look at training data, make shards of them, fetch a set.", no_args_is_help=True)
data.command()(fetch)

Format = Annotated[str | None, typer.Option(help="What SOURCES are, if they are data and no config; docs/data.md.")]
Images = Annotated[str | None, typer.Option(metavar="DIR", help="With --format: where paths of images begin.")]
Split = Annotated[str, typer.Option(help="With --format: of a data set.")]
Prompts = Annotated[
    list[str] | None, typer.Option("--prompt", help="With --format: what the user says to a caption; repeatable.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="NAME=COLUMN", help="With --format: a column by another name; repeatable."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="With --format: only the first so many samples.")]
Stream = Annotated[bool, typer.Option("--stream", help="With --format dataset: read it as it comes, from the hub.")]


@data.command()
@command
def inspect(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A config file; or with --format a source.")],
    source: Annotated[str | None, typer.Option(help="Only the source of this name.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Conversations to show, of each source.")] = 3,
    scan: Annotated[
        str, typer.Option(help="Samples to read and tokenise, of each source: a number, or all.")
    ] = "10000",
    check_images: Annotated[str, typer.Option(help="Samples whose images are decoded: a number, or all.")] = "200",
    language_model: Annotated[str, typer.Option(help="With --format: whose tokenizer and template.")] = "nano",
    format: Format = None,
    images: Images = None,
    split: Split = "train",
    prompts: Prompts = None,
    columns: Columns = None,
    limit: Limit = None,
    stream: Stream = False,
    as_json: AsJson = False,
) -> None:
    """Show what is in the data: texts with what is learned of them, lengths, counts, and what is broken."""
    from ..data.inspection import examine

    read, decoded = _some("--scan", scan), _some("--check-images", check_images)
    settings = None if format else _config(config)
    inputs = _inputs([config], format, images, split, prompts, columns, limit, stream)
    if source is not None:
        known = ", ".join(one.called for one in inputs)
        inputs = [one for one in inputs if one.called == source]
        if not inputs:
            raise InputError(f"There is no source {source!r} in {config}: choose from {known}.")
    processor, max_tokens, max_broken = _rendering(settings, language_model)
    found: list[Findings] = []
    for one in inputs:
        with _progress(one.called) as tell:
            opened = _open(one, read)
            found.append(
                examine(
                    opened,
                    processor,
                    scan=read,
                    show=samples,
                    images=decoded,
                    max_tokens=max_tokens,
                    tell=tell,
                )
            )
    broken = sum(len(one.broken) for one in found)
    none_whole = any(one.checked and len(one.broken) == one.checked for one in found)
    wrong = any(one.errors for one in found) or broken > max_broken or none_whole
    if as_json:
        print_json({"config": config, "sources": [_facts(one) for one in found], "ok": not wrong})
    else:
        for one in found:
            _show(one)
        if broken > max_broken:
            say(f"Broken images: {broken}, more than data.max_broken allows ({max_broken}): training would stop.")
    if wrong:
        raise typer.Exit(MISTAKE)


@data.command()
@command
def convert(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="SOURCES... DST", help="Config files, or data with --format; then a folder for shards."),
    ],
    format: Format = None,
    images: Images = None,
    split: Split = "train",
    prompts: Prompts = None,
    columns: Columns = None,
    limit: Limit = None,
    stream: Stream = False,
    shard_size: Annotated[str, typer.Option(help="About so large, as 256MB; or so many, as 10000rows.")] = "256MB",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")] = None,
    check: Annotated[
        bool, typer.Option("--check-images/--no-check-images", help="Decode each image, and leave out the broken.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Write data of any format as shards. Run it again after an interruption: what is finished is kept."""
    from ..data.shards import convert as run
    from ..data.shards import parse_size

    *sources, destination = paths
    inputs = _inputs(sources, format, images, split, prompts, columns, limit, stream)
    with _progress("converted") as tell:
        done = run(
            inputs,
            Path(destination).expanduser(),
            size=parse_size(shard_size),
            workers=workers or _cores(),
            check=check,
            tell=lambda count, total: tell("samples", count, total),
        )
    if as_json:
        print_json(_conversion(done))
    else:
        _show_conversion(done)


@data.command()
@command
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DST", help="A folder of shards.")], as_json: AsJson = False
) -> None:
    """Read shards through and compare them with their index: hashes, rows, ids."""
    from ..data.shards import verify as run

    with _progress("verified") as tell:
        found = run(folder, tell=lambda done, total: tell("shards", done, total))
    if as_json:
        print_json(asdict(found) | {"ok": not found.problems})
    else:
        for problem in found.problems[:LISTED]:
            say(problem)
        wrong = f"{len(found.problems)} problems" if found.problems else "nothing is wrong"
        say(f"{found.shards} shards, {found.samples} samples: {wrong}.")
    if found.problems:
        raise typer.Exit(MISTAKE)


# -- what is given -----------------------------------------------------------------------------------------


def _config(path: str) -> TrainConfig:
    from ..train.config import load_config

    return load_config(path)


def _inputs(
    given: list[str],
    format: str | None,
    images: str | None,
    split: str,
    prompts: list[str] | None,
    columns: list[str] | None,
    limit: int | None,
    stream: bool,
) -> list[Input]:
    """The sources of configs, or those that the options describe."""
    from ..data.formats import FORMATS
    from ..data.shards import Input

    if format is not None:
        if format not in FORMATS:
            raise InputError(f"There is no format {format!r}: choose from {', '.join(FORMATS)}.")
        named = dict(_column(one) for one in columns or [])
        paths: list[str | None] = [*given] or [None]
        return [Input(format, path, images, None, split, tuple(prompts or ()), named, limit, stream) for path in paths]
    if not given:
        raise InputError("No source is named: give a config file, or data with --format.")
    if stream or images or prompts or columns or limit:
        raise InputError("The options of a source are given without --format: add it, or change the config.")
    fields = ("format", "path", "images", "name", "split", "prompts", "columns", "limit")
    sections = [section for path in given for section in _config(path).data.sources]
    return [Input(**{name: getattr(section, name) for name in fields}) for section in sections]


def _column(option: str) -> tuple[str, str]:
    name, equals, column = option.partition("=")
    if not equals or not name or not column:
        raise InputError(f"--column {option!r} is not of the form NAME=COLUMN, as in caption=title.")
    return name, column


def _some(option: str, text: str) -> Some:
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise InputError(f"{option} {text!r} is not understood: give a number, or all.")
    return int(text)


def _open(one: Input, scan: Some) -> Source:
    if not one.streaming:
        return one.open()
    from ..data.formats.dataset import Listed
    from ..data.shards.convert import stream

    # A stream has no end that can be known: of it, --scan counts from the beginning.
    count = min(one.limit or STREAMED, STREAMED if scan == "all" else scan)
    return Listed(one.called, list(itertools.islice(stream(one), count)))


def _rendering(settings: TrainConfig | None, language_model: str) -> tuple[Any, int | None, int]:
    """What renders conversations, where they are cut, and how many broken images are allowed."""
    from ..loading import text_processor

    if settings is None:
        from ..train.config import DataSection

        return text_processor(language_model), None, DataSection().max_broken  # type: ignore[call-arg]
    model = settings.model
    processor = text_processor(model.language_model, checkpoint=model.checkpoint, chat_template=model.chat_template)
    return processor, settings.data.max_text_tokens, settings.data.max_broken


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- what is shown -----------------------------------------------------------------------------------------


@contextmanager
def _progress(about: str) -> Generator[Callable[[str, int, int | None], None]]:
    """A bar with rate and time left for a person, a line now and then for a log."""
    if not sys.stderr.isatty():
        yield _lines(about)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err(), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"{about}: {what}", total=None, rate="")
            speed = next(one.speed for one in bar.tasks if one.id == tasks[what])
            bar.update(tasks[what], completed=done, total=total, rate=f"{speed:.0f}/s" if speed else "")

        yield tell


def _lines(about: str, every: float = 10.0) -> Callable[[str, int, int | None], None]:
    began: dict[str, tuple[float, int]] = {}
    last = time.monotonic()

    def tell(what: str, done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        start, first = began.setdefault(what, (now, done))
        if now - last < every:
            return
        last = now
        rate = (done - first) / max(1e-9, now - start)
        left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
        note(f"{about}: {done} of {total or 'unknown'} {what}, {rate:.0f}/s{left}")

    return tell


def _facts(found: Findings) -> dict[str, Any]:
    return {
        "name": found.name,
        "samples": found.samples,
        "repeated_ids": found.repeats,
        "read": found.read,
        "conversations": found.conversations,
        "images": found.images,
        "without_image": found.without_image,
        "tokens": found.lengths(),
        "learned_share": round(found.learned_share(), 4),
        "errors": [one._asdict() for one in found.errors],
        "images_checked": found.checked,
        "broken_images": [one._asdict() for one in found.broken],
        "rendered": [
            asdict(one) | {"pieces": [{"text": piece.text, "learned": piece.learned} for piece in one.pieces]}
            for one in found.rendered
        ],
    }


def _show(found: Findings) -> None:
    of = "" if found.read == found.samples else f" of {found.samples} (--scan all reads all)"
    say(f"{found.name}: {found.read} samples{of}")
    for one in found.rendered:
        _show_text(one)
    images = f"{found.images} images, {found.without_image} samples without one"
    say(f"  counts    {found.conversations} conversations, {images}")
    lengths = "  ".join(f"{name} {count}" for name, count in found.lengths().items())
    say(f"  tokens    {lengths or 'none'}; {100 * found.learned_share():.1f} % are learned")
    if found.repeats:
        say(f"  ids       {found.repeats} samples came with the id of another one, and got one of their own")
    say(f"  images    {found.checked} decoded, {len(found.broken)} broken")
    for what, listed in (("broken", found.broken), ("error", found.errors)):
        for one in listed[:LISTED]:
            about = f"{one.where}: " if one.where and one.where not in one.reason else ""
            say(f"  {what:<9} {about}{one.reason}")
        if len(listed) > LISTED:
            say(f"  {what:<9} and {len(listed) - LISTED} more: --json lists all")


def _show_text(one: Rendered) -> None:
    """A conversation; what is learned is green, or between ⟦ and ⟧ where there is no colour."""
    from rich.text import Text

    console = out()
    say(f"  sample    {one.id}  ({one.where}; {one.tokens} tokens, {one.images} images)")
    colour = console.color_system is not None
    text = Text()
    for piece in one.pieces:
        shown = printable(piece.text)
        if piece.learned:
            text.append(shown if colour else f"⟦{shown}⟧", style="bold green")
        else:
            text.append(shown, style="dim")
    for line in text.split("\n", allow_blank=True):
        console.print(Text("            ") + line, soft_wrap=True)


def _conversion(done: Conversion) -> dict[str, Any]:
    return asdict(done) | {"skipped_file": str(Path(done.folder) / "skipped.jsonl")}


def _show_conversion(done: Conversion) -> None:
    from rich.filesize import decimal

    say(f"written     {done.samples} samples with {done.images} images, {decimal(done.bytes)} in {done.shards} shards")
    say(f"to          {done.folder}  (checked: hashes, rows, ids; {done.kept} shards were there already)")
    if done.broken_images or done.unusable:
        listed = Path(done.folder) / "skipped.jsonl"
        say(f"left out    {done.broken_images} for a broken image, {done.unusable} unusable, as listed in {listed}")
    say(f"use it      data.sources: [{{format: shards, path: {done.folder}}}]")
