"""`vlora evaluate`: accuracy on a task."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError
from ._eyes import AsJson, Device, Model, Views, load_eyes
from ._output import command, err, out, print_json, say

if TYPE_CHECKING:
    from rich.table import Table

    from ..data.sets.easy_vqa import Split
    from ..evaluate.controls import Control
    from ..evaluate.easy_vqa import Result


@command
def evaluate(
    task: Annotated[Literal["easy-vqa", "nano-suite"], typer.Argument(help="What to be tested on.")],
    model: Model = "nano",
    split: Annotated[Literal["test", "train"], typer.Option(help="Of easy-vqa.")] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many questions, of nano-suite for each of its tasks.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="Only this task of nano-suite; repeatable.")
    ] = None,
    first: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Of nano-suite: pictures from number N on. Choose by some, measure by others."
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the sample and of the shuffled images.")] = 0,
    control: Annotated[
        Literal["none", "shuffled", "no-image", "question-only"] | None,
        typer.Option(
            help="What the model is kept from seeing: the right image, any image; or no model at all. Without it, "
            "nano-suite has all of them beside the model, and easy-vqa none."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 64,
    device: Device = None,
    views: Views = None,
    save: Annotated[Path | None, typer.Option(help="Write a JSON line for each question to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy on a task, with 95 % intervals."""
    if save is not None:
        _check_target(save)
    if task == "nano-suite":
        if split != "test":
            raise InputError("nano-suite has the split test only: leave --split out.")
        from ._suite import measure, show

        controls = None if control is None else () if control == "none" else (control,)
        facts, rows = measure(
            model,
            device,
            views=views,
            first=first,
            limit=limit,
            only=only,
            controls=controls,
            seed=seed,
            batch_size=batch_size,
            bar=_progress(),
        )
        table = show
    else:
        for option, given in (("--only", only), ("--first", first)):
            if given:
                raise InputError(f"{option} chooses among what nano-suite asks: leave it out.")
        facts, rows, table = _easy_vqa(model, device, views, split, control or "none", limit, seed, batch_size)
    if save is not None:
        _write(rows, save)
        facts["answers_file"] = str(save)
    if as_json:
        print_json(facts)
    else:
        table(facts)


def _easy_vqa(
    model: str,
    device: str | None,
    views: int | None,
    split: Split,
    control: Control,
    limit: int | None,
    seed: int,
    batch_size: int,
) -> tuple[dict[str, Any], Sequence[Any], Callable[[dict[str, Any]], None]]:
    from ..evaluate.easy_vqa import evaluate as run

    eyes = None if control == "question-only" else load_eyes(model, device, views)[0]
    with _progress() as progress:
        result = run(
            eyes, split=split, control=control, limit=limit, seed=seed, batch_size=batch_size, progress=progress
        )
    return result.to_dict(), result.rows, lambda _facts: _show(result)


def _check_target(path: Path) -> None:
    """Refuse a file that cannot be written now, not after minutes of work."""
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a folder" if path.is_dir() else f"needs the folder {path.parent}, which does not exist"
        raise InputError(f"--save {path} {wrong}: give a file in an existing folder.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"--save {path} cannot be written: give a file in a folder of yours.")


def _write(rows: Sequence[Any], path: Path) -> None:
    """Write beside the target, then rename: what is there is whole."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row.to_dict()) + "\n" for row in rows)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"--save {path} cannot be written ({error.strerror}): give another file.") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _progress() -> Generator[Callable[[int, int], None] | None, None, None]:
    """A bar on stderr, with rate and end; nothing where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("questions"),
        rate,
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=err(), transient=True) as bar:
        task = bar.add_task("", total=None, rate="")

        def tell(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total, rate=f"{speed:.1f}/s" if speed else "")

        yield tell


def _show(result: Result) -> None:
    low, high = result.total.interval
    control = "" if result.control == "none" else f", control {result.control}"
    say(
        f"easy-vqa {result.split}{control}: accuracy {result.total.accuracy:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f}) on {result.total.n} questions in {result.seconds:.1f} s"
    )
    out().print(_table(result))


def _table(result: Result) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("kind")
    for heading in ("questions", "accuracy", "95 % interval"):
        table.add_column(heading, justify="right")
    for name, part in result.kinds.items():
        low, high = part.interval
        table.add_row(name, str(part.n), f"{part.accuracy:.4f}", f"{low:.4f} to {high:.4f}")
    return table
