"""What training runs have logged: run folder -> `Run`, three numbers for each line of its log.

A run folder holds `config.yaml` and `metrics.jsonl`, to which a line is added at every log step. A run that is killed
may leave half a line at its end, and one that is resumed goes back to its last checkpoint; both are read as what was
logged in the end.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import yaml

from ..errors import DataError, InputError

CONFIG, METRICS = "config.yaml", "metrics.jsonl"

Axis: TypeAlias = Literal["steps", "samples", "seconds"]
AXES: tuple[Axis, ...] = ("steps", "samples", "seconds")

_FIELDS = ("step", "samples", "seconds", "loss")
_WINDOW = 0.04  # of a log's lines, on which a mean is taken


@dataclass(frozen=True)
class Run:
    """The log of a run.

    Args:
        folder: of the run.
        name: of its experiment.
        paradigm: `weights` or `visual-tokens`.
        steps: optimiser steps done, at each line.
        samples: looks taken until then.
        seconds: of training until then, over all resumptions.
        losses: mean since the line before, nats per token.
        cut: whether the last line was cut off, and is left out.
    """

    folder: Path
    name: str
    paradigm: str
    steps: tuple[float, ...]
    samples: tuple[float, ...]
    seconds: tuple[float, ...]
    losses: tuple[float, ...]
    cut: bool

    def along(self, axis: Axis) -> tuple[float, ...]:
        """Where on an axis each line lies."""
        return {"steps": self.steps, "samples": self.samples, "seconds": self.seconds}[axis]

    @cached_property
    def smooth(self) -> tuple[float, ...]:
        """A running mean of the losses, over 4 % of the log to either side; what is not finite is left out."""
        finite = [loss if math.isfinite(loss) else 0.0 for loss in self.losses]
        sums = [0.0, *accumulate(finite)]
        counts = [0, *accumulate(int(math.isfinite(loss)) for loss in self.losses)]
        lines, half = len(self.losses), max(1, round(_WINDOW * len(self.losses)))
        means: list[float] = []
        for place in range(lines):
            first, last = max(0, place - half), min(lines, place + half + 1)
            count = counts[last] - counts[first]
            means.append((sums[last] - sums[first]) / count if count else math.nan)
        return tuple(means)

    def loss_at(self, axis: Axis, value: float) -> float | None:
        """The smooth loss at a place of an axis, on the line between its neighbours; None where the log is not."""
        places, losses = self.along(axis), self.smooth
        if not places[0] <= value <= places[-1]:
            return None
        after = min(max(bisect_right(places, value), 1), len(places) - 1) if len(places) > 1 else 0
        before = max(0, after - 1)
        span = places[after] - places[before]
        share = (value - places[before]) / span if span else 1.0
        return losses[before] + share * (losses[after] - losses[before])


def read_run(folder: str | Path) -> Run:
    """Read the log of a run.

    Raises:
        InputError: no such folder, or none of a run.
        DataError: a log without a line, of another form, or damaged before its end.
    """
    folder = Path(folder)
    config = _config(folder)
    path = folder / METRICS
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise InputError(
            f"The run {str(folder)!r} has no {METRICS}: it has logged nothing yet, so wait for its first log step."
        ) from error
    except OSError as error:
        raise InputError(f"The log {str(path)!r} cannot be read ({error.strerror}): give another run.") from error
    lines, cut = _lines(text, path)
    kept: list[tuple[float, float, float, float]] = []
    for line in lines:
        while kept and kept[-1][0] >= line[0]:  # of steps that were done again
            kept.pop()
        kept.append(line)
    if not kept:
        raise DataError(f"The log {str(path)!r} has no whole line yet: wait for the run's first log step.")
    steps, samples, seconds, losses = zip(*kept, strict=True)
    name, paradigm = config.get("name") or folder.resolve().name, config.get("paradigm") or "weights"
    return Run(folder, str(name), str(paradigm), steps, samples, seconds, losses, cut)


def shared_end(runs: Sequence[Run], axis: Axis) -> float:
    """The last place of an axis that every run has reached."""
    return min(run.along(axis)[-1] for run in runs)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        found = "a folder without a config.yaml" if folder.is_dir() else "a file" if folder.exists() else "not there"
        raise InputError(f"{str(folder)!r} is no run, it is {found}: give folders of runs such as runs/nano.")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"The config {str(path)!r} is damaged: restore it, or give another run.") from error
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}


def _lines(text: str, path: Path) -> tuple[list[tuple[float, float, float, float]], bool]:
    """Step, samples, seconds and loss of each line, and whether the last one was cut off."""
    written = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    lines: list[tuple[float, float, float, float]] = []
    for number, line in written:
        try:
            fields = json.loads(line)
        except ValueError as error:
            if number == written[-1][0]:
                return lines, True
            raise DataError(f"Line {number} of {str(path)!r} is damaged: remove it, or give another run.") from error
        lines.append(_numbers(fields, number, path))
    return lines, False


def _numbers(fields: Any, number: int, path: Path) -> tuple[float, float, float, float]:
    found = [cast("dict[str, Any]", fields).get(name) if isinstance(fields, dict) else None for name in _FIELDS]
    missing = [name for name, value in zip(_FIELDS, found, strict=True) if not _is_number(value)]
    if missing:
        raise DataError(
            f"Line {number} of {str(path)!r} has no number for {', '.join(missing)}: give runs that were trained with "
            "this version."
        )
    step, samples, seconds, loss = (float(cast("float", value)) for value in found)
    return step, samples, seconds, loss


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


__all__ = ["AXES", "Axis", "Run", "read_run", "shared_end"]
