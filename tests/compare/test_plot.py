"""The figure of runs: three panels, every run in each, readable at any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from tests.compare.logs import write_run
from vlora.compare.plot import MOST, draw, labels, plot
from vlora.compare.runs import Run, read_run
from vlora.errors import InputError


def falling(lines: int, *, start: float = 8.0, end: float = 0.4) -> list[float]:
    return [end + (start - end) * math.exp(-number / 12) * (1 + 0.1 * (-1) ** number) for number in range(lines)]


def some_runs(folder: Path, lines: Sequence[int], **options: Any) -> list[Run]:
    return [
        read_run(write_run(folder / str(number), falling(count), name=f"run-{number}", **options))
        for number, count in enumerate(lines)
    ]


def test_three_panels(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a", falling(80), rate=40)),
        read_run(write_run(tmp_path / "b", falling(30), rate=8, name="slow", paradigm="visual-tokens")),
    ]
    figure = draw(runs)
    steps, samples, seconds = figure.axes
    for panel, axis in ((steps, "steps"), (samples, "samples"), (seconds, "time")):
        assert panel.get_title(loc="left") == f"loss against {axis}"
        assert len(panel.lines) == 4
        for run, faint, line in zip(runs, panel.lines[::2], panel.lines[1::2], strict=True):
            assert tuple(faint.get_ydata()) == run.losses
            assert tuple(line.get_ydata()) == run.smooth
            assert faint.get_alpha() < 0.5
            assert faint.get_color() == line.get_color()
    assert tuple(samples.lines[2].get_xdata()) == runs[1].samples
    assert seconds.get_xlabel() == "minutes of training"
    assert seconds.lines[2].get_xdata()[-1] == pytest.approx(runs[1].seconds[-1] / 60)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["nano · weights", "slow · visual tokens"]
    assert steps.get_yscale() == "log"
    low, high = steps.get_ylim()
    assert low < min(map(min, (run.smooth for run in runs)))
    assert high > max(map(max, (run.smooth for run in runs)))


@pytest.mark.parametrize(("rate", "unit"), [(100.0, "seconds"), (2.0, "minutes"), (0.05, "hours")])
def test_time_in_fitting_units(tmp_path: Path, rate: float, unit: str) -> None:
    assert draw(some_runs(tmp_path, [30], rate=rate)).axes[2].get_xlabel() == f"{unit} of training"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a", [1.0])),
        read_run(write_run(tmp_path / "b", [1.0])),
        read_run(write_run(tmp_path / "c", [1.0], paradigm="visual-tokens")),
    ]
    found = labels(runs)
    assert found[2] == "nano · visual tokens"
    assert [label.rsplit("/", 1)[1] for label in found[:2]] == ["a", "b"]


@pytest.mark.parametrize(
    "losses",
    [[2.0], [2.0, 2.0], [math.nan, math.nan], [5.0, math.nan, 4.0], [0.0, 0.0], [1e-6, 1e3], [1.0, 1e30, 1.0]],
)
def test_any_log_can_be_drawn(tmp_path: Path, losses: list[float]) -> None:
    run = read_run(write_run(tmp_path / "a", losses, name="a.$b_$" + "x" * 60))
    plot([run], tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width > 1500


@pytest.mark.parametrize("lines", [[1], [60, 20], [40] * 5, [30] * MOST])
def test_nothing_overlaps_or_is_cut_off(tmp_path: Path, lines: list[int]) -> None:
    figure = draw(some_runs(tmp_path, lines, paradigm="visual-tokens", rate=3.0))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes: list[Any] = [panel.get_tightbbox(renderer) for panel in figure.axes]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        for other in boxes[:number]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(across, down) < 1, (box, other)


def test_lines_of_many_runs_differ(tmp_path: Path) -> None:
    panel = draw(some_runs(tmp_path, [3] * MOST)).axes[0]
    looks = {(line.get_color(), str(line.get_linestyle()), str(line._dash_pattern)) for line in panel.lines[1::2]}
    assert len(looks) == MOST


def test_too_many_runs(tmp_path: Path) -> None:
    [run] = some_runs(tmp_path, [3])
    with pytest.raises(InputError, match="25 runs cannot be told apart in one figure: give 1 to 24"):
        plot([run] * (MOST + 1), tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()
