"""Figures that show what they were given, at any size, and files that are whole."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vlora.errors import InputError
from vlora.evaluate.attention import Grid
from vlora.evaluate.deltas import Delta
from vlora.evaluate.plots import draw_attention, draw_deltas, write

NAMES = ("q", "k", "v", "o", "gate", "up", "down", "mlp")
CAPTION = "a photograph with a name of forty letters · a model with a name of $40 letters"


def some_deltas(targets: int, layers: int) -> list[Delta]:
    return [
        Delta(4 * layer + 3, NAMES[target], 10.0 * target + layer + 0.5, 0.01 * layer, 1.0, 1.5 + target)
        for layer in range(layers)
        for target in range(targets)
    ]


def some_attention(targets: int, layers: int, size: tuple[int, int] = (96, 96)) -> Figure:
    grid = Grid(0, size[0] // 8, size[1] // 8, 8, 8)
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    shares = np.random.default_rng(1).dirichlet(np.ones(grid.features), (targets, layers)).astype(np.float32)
    return draw_attention(
        picture,
        shares.reshape(targets, layers, grid.rows, grid.columns),
        grid,
        targets=NAMES[:targets],
        layers=range(layers),
        caption=CAPTION,
    )


def cells(figure: Figure, panel: str) -> list[str]:
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(panel)]
    return [text.get_text() for text in axes.texts if text.get_text() != "layer"]


def test_numbers_stand_in_their_cells() -> None:
    deltas = [
        Delta(3, "q", 12.34, 0.0512, 1.0, 3.25),
        Delta(3, "mlp", 0.5, None, 1.0, 4.0),
        Delta(7, "q", 1e-5, 0.2, 1.0, 1.0),
        Delta(7, "mlp", math.nan, None, math.nan, math.nan),
    ]
    figure = draw_deltas(deltas, rank=4)
    assert cells(figure, "norm  ") == ["12.3", "1e-05", "0.500", "–"]
    assert cells(figure, "norm over") == ["5.12", "20.0", "–", "–"]
    assert cells(figure, "effective rank, of at most 4") == ["3.25", "1.00", "4.00", "–"]
    for axes in figure.axes[::2]:
        assert [label.get_text() for label in axes.get_yticklabels()] == ["q", "mlp"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "7"]


def test_scales_of_the_maps_begin_at_zero() -> None:
    figure = draw_deltas(some_deltas(2, 3), rank=9)
    limits = [axes.images[0].get_clim() for axes in figure.axes if axes.images]
    assert limits == [(0, 12.5), (0, 2.0), (0, 9)]


def test_nothing_to_compare_with() -> None:
    deltas = [Delta(0, "q", 0.0, None, 0.0, 0.0)]  # a fresh model on a quantised language model
    figure = draw_deltas(deltas, rank=4)
    assert [axes.get_title(loc="left")[:4] for axes in figure.axes[::2]] == ["norm", "effe"]
    assert cells(figure, "norm") == ["0"]


def test_the_patch_that_is_looked_at_glows() -> None:
    """Read back from the drawn pixels, on a grid that is not square and leaves an edge of the picture over."""
    picture = np.full((50, 70, 3), 128, dtype=np.uint8)
    grid = Grid(0, 3, 4, 16, 16)
    shares = np.zeros((2, 2, 3, 4), dtype=np.float32)
    wanted = {(0, 0): (0, 0), (0, 1): (2, 3), (1, 0): (1, 0), (1, 1): (0, 2)}
    for place, patch in wanted.items():
        shares[place][patch] = 0.75
    figure = draw_attention(picture, shares, grid, targets=("q", "v"), layers=(3, 7))
    pixels = drawn(figure)
    panels = [axes for axes in figure.axes if len(axes.images) == 2]
    assert len(panels) == 4
    for axes, (row, column) in zip(panels, wanted.values(), strict=True):
        left, bottom, right, top = (round(edge) for edge in axes.get_window_extent().extents)
        panel = pixels[len(pixels) - top : len(pixels) - bottom, left:right].astype(int)
        ys, xs = np.nonzero(np.ptp(panel, axis=2) > 60)  # colour on grey
        found = np.array([ys.min(), ys.max() + 1, xs.min(), xs.max() + 1])
        scale = np.array([50, 50, 70, 70]) / np.repeat(panel.shape[:2], 2)
        expected = 16 * np.array([row, row + 1, column, column + 1])
        np.testing.assert_allclose(found * scale, expected, atol=1.5)
    assert [panels[0].get_ylabel(), panels[2].get_ylabel()] == ["q", "v"]
    assert [axes.get_title() for axes in panels[:2]] == ["layer 3", "layer 7"]


@pytest.mark.parametrize(
    ("kind", "targets", "layers"),
    [
        *((kind, *size) for kind in ("deltas", "attention") for size in ((1, 1), (5, 8), (3, 16))),
        *((kind, *size) for kind in ("wide", "tall") for size in ((1, 1), (4, 3))),
    ],
)
def test_nothing_overlaps_or_is_cut_off(kind: str, targets: int, layers: int) -> None:
    if kind == "deltas":
        figure = draw_deltas(some_deltas(targets, layers), rank=64, caption=CAPTION)
    else:
        figure = some_attention(targets, layers, {"attention": (96, 96), "wide": (48, 96), "tall": (96, 48)}[kind])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    whole = figure.bbox
    boxes: list[Any] = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= whole.x1
        assert box.y1 <= whole.y1
        for other in boxes[:number]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(across, down) < 1, (box, other)


def drawn(figure: Figure) -> Any:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_files_are_images(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "figures"
    figures = {"deltas.png": draw_deltas(some_deltas(2, 2), rank=4), "attention.png": some_attention(2, 2)}
    paths = write(figures, folder)
    assert paths == [folder / "deltas.png", folder / "attention.png"]
    for path, figure in zip(paths, figures.values(), strict=True):
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            np.testing.assert_allclose(image.size, 160 * figure.get_size_inches(), atol=1)
    assert sorted(os.listdir(folder)) == ["attention.png", "deltas.png"]
    write(figures, folder)  # over what is there


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be made .*: name another folder"):
        write({"deltas.png": draw_deltas(some_deltas(1, 1), rank=4)}, tmp_path / "file" / "below")


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "deltas.png").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write({"deltas.png": draw_deltas(some_deltas(1, 1), rank=4)}, tmp_path)
    assert os.listdir(tmp_path) == ["deltas.png"]
    assert not any((tmp_path / "deltas.png").iterdir())
