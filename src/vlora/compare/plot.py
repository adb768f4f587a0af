"""The losses of training runs, against steps, samples and seconds: one panel each, the runs laid over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import figures
from ..errors import InputError
from .runs import AXES, Axis, Run

MOST = 24
"""Runs that can be told apart in one figure."""

_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#6b6b6b")
_LINES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_INK, _GRID = "#333333", "#dddddd"
_LONGEST_NAME = 40
_LEGEND_WIDTH = 160  # characters beside each other
_WIDE_RANGE = 6  # beyond this ratio the losses are drawn on a logarithmic scale

_UNITS = ((3 * 3600, 3600, "hours"), (3 * 60, 60, "minutes"), (0, 1, "seconds"))


def plot(runs: Sequence[Run], path: str | Path) -> None:
    """Write the figure.

    Args:
        runs: up to `MOST`.
        path: ends in `.png`; what is there is replaced by a whole file.

    Raises:
        InputError, MissingDependency: too many runs; else see `figures.check_file`.
    """
    path = Path(path)
    figures.check_file(path)
    figures.write({path: draw(runs)}, dpi=150)


def labels(runs: Sequence[Run]) -> list[str]:
    """Name and paradigm of each run, and its folder where two have both in common."""
    plain = [f"{_short(run.name)} · {run.paradigm.replace('-', ' ')}" for run in runs]
    return [
        label if plain.count(label) == 1 else f"{label} · {_short(str(run.folder))}"
        for label, run in zip(plain, runs, strict=True)
    ]


def draw(runs: Sequence[Run]) -> Any:
    """The figure, as matplotlib's `Figure`.

    Raises:
        InputError: too many runs, or none.
    """
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen

    if not 1 <= len(runs) <= MOST:
        raise InputError(f"{len(runs)} runs cannot be told apart in one figure: give 1 to {MOST}.")
    widest = max(len(label) for label in labels(runs)) + 8  # a sample of the line, and space
    columns = min(len(runs), max(1, _LEGEND_WIDTH // widest))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(13, 4.5 + 0.22 * rows), layout="constrained")
    panels = figure.subplots(1, len(AXES), sharey=True)
    for axis, panel in zip(AXES, panels, strict=True):
        _draw_panel(panel, axis, runs)
    _finish_losses(panels[0], runs)
    handles, names = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw_panel(panel: Any, axis: Axis, runs: Sequence[Run]) -> None:
    scale, unit = _unit(axis, runs)
    for number, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        colour, line = _COLOURS[number % len(_COLOURS)], _LINES[number // len(_COLOURS)]
        places = [place / scale for place in run.along(axis)]
        panel.plot(places, run.losses, color=colour, lw=0.8, alpha=0.25)
        # A run of one line would be invisible.
        mark = "o" if len(places) == 1 else None
        panel.plot(places, run.smooth, color=colour, lw=2, ls=line, marker=mark, label=label)
    panel.set_xlabel(unit)
    panel.set_xlim(left=0)
    panel.set_title(f"loss against {'time' if axis == 'seconds' else axis}", fontsize=11, color=_INK, loc="left")
    panel.xaxis.set_major_formatter(_plain)
    panel.locator_params(axis="x", nbins=6)
    panel.grid(color=_GRID, lw=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _unit(axis: Axis, runs: Sequence[Run]) -> tuple[int, str]:
    """What an axis is divided by, and its name."""
    if axis != "seconds":
        return 1, {"steps": "optimiser steps", "samples": "samples (looks, and texts without an image)"}[axis]
    last = max(run.seconds[-1] for run in runs)
    return next((scale, f"{name} of training") for least, scale, name in _UNITS if last >= least)


def _finish_losses(panel: Any, runs: Sequence[Run]) -> None:
    """Limits by the smooth lines, with room for most of the faint ones; logarithmic if the losses differ much."""
    smooth = sorted(loss for run in runs for loss in run.smooth if math.isfinite(loss) and loss > 0)
    raw = sorted(loss for run in runs for loss in run.losses if math.isfinite(loss) and loss > 0)
    panel.set_ylabel("loss, nats per token of an answer")
    if not smooth:
        return
    low, high = min(smooth[0], raw[len(raw) // 50]), max(smooth[-1], raw[-1 - len(raw) // 50])
    if high > _WIDE_RANGE * low:
        panel.set_yscale("log")
        panel.set_ylim(low / 1.15, high * 1.15)
        _label_logarithm(panel, wide=high > 100 * low)
    else:
        margin = 0.05 * (high - low) or 0.1 * high
        panel.set_ylim(max(0, low - margin), high + margin)


def _label_logarithm(panel: Any, *, wide: bool) -> None:
    """Plain numbers at 1, 2, 5, 10 ... instead of powers of ten; over many decades at 1, 10 ... only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(_plain))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: Any = None) -> str:
    if value and abs(value) < 1:
        return f"{value:g}"
    return f"{value:,.0f}" if value == round(value) else f"{value:,g}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


__all__ = ["MOST", "draw", "labels", "plot"]
