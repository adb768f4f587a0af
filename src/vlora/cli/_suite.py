"""The nano suite on the command line: who is asked, what stands beside the shipped model, the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..errors import InputError
from ._eyes import load_eyes
from ._output import out, say

Bar = AbstractContextManager[Callable[[int, int], None] | None]


def measure(
    model: str,
    device: str | None,
    *,
    views: int | None,
    first: int,
    limit: int | None,
    only: Sequence[str] | None,
    controls: Sequence[str] | None,
    seed: int,
    batch_size: int,
    bar: Bar,
) -> tuple[dict[str, Any], Sequence[Any]]:
    """Ask a model everything.

    Returns:
        What `--json` prints, and a row for each question that the model answered.
    """
    from ..evaluate.answerers import is_baseline, load_baseline, of_baseline, of_eyes, tokens_of
    from ..evaluate.nano_suite import CONTROLS, TARGETS, evaluate
    from ..nano.compared import compared

    if is_baseline(model):
        if views is not None:
            raise InputError(f"{model} has visual tokens and looks once: leave --views out.")
        baseline, processor = load_baseline(model, device)
        answers = of_baseline(baseline, processor, batch_size=batch_size)
    else:
        eyes = load_eyes(model, device, views)[0]
        answers, processor = of_eyes(eyes, batch_size=batch_size), eyes.processor

    with bar as progress:
        result = evaluate(
            answers,
            model=model,
            tokens=tokens_of(processor),
            tasks=tuple(only or TARGETS),
            limit=limit,
            controls=CONTROLS if controls is None else controls,
            seed=seed,
            first=first,
            progress=progress,
        )
    facts = result.to_dict() | ({"first": first} if first else {})
    return compared(facts) if model == "nano" else facts, result.rows


def show(facts: dict[str, Any]) -> None:
    """A line for each task."""
    from rich import box
    from rich.table import Table

    from ..nano.compared import NAMES

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("task")
    first = next(iter(facts["tasks"].values()))
    beside = [*first.get("controls", {}), *[name for name in NAMES if name in first]]
    for heading in ("questions", "accuracy", "95 % interval", "target", *beside):
        table.add_column(heading, justify="right")
    for name, part in facts["tasks"].items():
        low, high = part["interval"]
        others = {**part.get("controls", {}), **part}
        target = part["target"]
        cells = [f"{others[column]['accuracy']:.3f}" if others.get(column) else "" for column in beside]
        table.add_row(
            name,
            str(part["n"]),
            f"{part['accuracy']:.3f}",
            f"{low:.3f} to {high:.3f}",
            "" if target is None else f"{target:.3f}",
            *cells,
        )
    say(f"nano-suite, {facts['model']}: {facts['seconds']:.0f} s")
    out().print(table)
