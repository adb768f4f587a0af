"""`vlora plot`: the losses of training runs, laid over each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._eyes import AsJson
from ._output import command, note, out, print_json, say

if TYPE_CHECKING:
    from rich.table import Table

    from ..compare.runs import Run


@command
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, such as runs/nano.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.png", help="Where the figure goes.")],
    as_json: AsJson = False,
) -> None:
    """Draw the losses of training runs against steps, samples and seconds, and compare them where all have been."""
    from ..compare.plot import plot as draw
    from ..compare.runs import read_run
    from ..figures import check_file

    check_file(output)
    read = [read_run(folder) for folder in runs]
    draw(read, output)
    for run in read:
        if run.cut:
            note(f"The last line of the log of {run.folder} is cut off, and is left out.")
    facts = describe(read)
    if as_json:
        print_json(facts | {"plot": str(output)})
    else:
        _show(read, facts)
        say(f"figure       {output}")


def describe(runs: list[Run]) -> dict[str, Any]:
    """Where each run ends, and the smooth loss of each at the last place that all have reached."""
    from ..compare.runs import AXES, shared_end

    ends = {axis: shared_end(runs, axis) for axis in AXES}
    return {
        "runs": [
            {
                "folder": str(run.folder),
                "name": run.name,
                "paradigm": run.paradigm,
                "steps": int(run.steps[-1]),
                "samples": int(run.samples[-1]),
                "seconds": run.seconds[-1],
                "samples_per_second": run.samples[-1] / run.seconds[-1] if run.seconds[-1] else None,
                "loss": _finite(run.smooth[-1]),
                "loss_at_shared": {axis: _finite(run.loss_at(axis, ends[axis])) for axis in AXES},
                "cut": run.cut,
            }
            for run in runs
        ],
        "shared": ends,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _show(runs: list[Run], facts: dict[str, Any]) -> None:
    out().print(_table(runs, facts))
    if len(runs) > 1:
        say("The last three columns compare: the loss of each run at the last place that all of them have reached.")


def _table(runs: list[Run], facts: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    from ..compare.plot import labels

    ends = facts["shared"]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("run")
    headings = ["steps", "samples", "seconds", "samples/s", "loss"]
    if len(runs) > 1:
        headings += [f"at step {ends['steps']:,.0f}", f"{ends['samples']:,.0f} samples", f"{ends['seconds']:,.0f} s"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for label, run in zip(labels(runs), facts["runs"], strict=True):
        rate = run["samples_per_second"]
        cells = [
            f"{run['steps']:,}",
            f"{run['samples']:,}",
            f"{run['seconds']:,.0f}",
            "-" if rate is None else f"{rate:,.2f}",
            _number(run["loss"]),
        ]
        if len(runs) > 1:
            cells += [_number(loss) for loss in run["loss_at_shared"].values()]
        table.add_row(label, *cells)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
