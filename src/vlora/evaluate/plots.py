"""Figures of what an image does to a model: size and rank of each ΔW, and where the perceptual queries looked.

Needs the extra `plot` (matplotlib); nothing of it is imported before a figure is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import figures
from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from .attention import Grid
    from .deltas import Delta

DPI = 160

_PALE = "0.92"  # a cell without a number
_MIDDLE = "0.65"  # of the greys a picture is drawn in
_ASIDE: dict[str, Any] = {"fontsize": 7.5, "color": "0.4"}  # what is said in passing


def write(drawn: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures as PNG, each of them whole or not at all; the folder is made.

    Args:
        drawn: by file name.
        folder: where to.

    Raises:
        InputError: they cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"The folder {folder} cannot be made ({reason}): name another folder.") from error
    paths = {folder / name: figure for name, figure in drawn.items()}
    figures.write(paths, dpi=DPI)
    return list(paths)


# -- size and rank of each ΔW --------------------------------------------------------------------------


def draw_deltas(deltas: Sequence[Delta], *, rank: int, caption: str = "") -> Figure:
    """Maps of target x layer with the number in each cell: norm, norm over the base weight, effective rank.

    Args:
        deltas: one for each target and layer.
        rank: the highest that a ΔW can have.
        caption: what the figure is about; plain text.
    """
    targets, layers = list(dict.fromkeys(d.target for d in deltas)), sorted({d.layer for d in deltas})

    def table(value: Callable[[Delta], float | None]) -> NDArray[np.float64]:
        cells = {(d.target, d.layer): value(d) for d in deltas}
        return np.array([[_or_nan(cells[target, layer]) for layer in layers] for target in targets])

    relative = table(lambda d: None if d.relative_norm is None else 100 * d.relative_norm)
    panels: list[tuple[str, NDArray[np.float64], str, float | None]] = [
        ("norm  ‖ΔW‖", table(lambda d: d.norm), "Blues", None),
        ("norm over that of the base weight  ‖ΔW‖ / ‖W‖, %", relative, "Oranges", None),
        (f"effective rank, of at most {rank}", table(lambda d: d.effective_rank), "Purples", float(rank)),
    ]
    if not np.isfinite(relative).any():  # a quantised language model has no norms to compare with
        del panels[1]

    width, height, gap = max(3.6, 0.56 * len(layers)), 0.34 * len(targets), 0.7
    figure = _figure(0.65 + width + 0.75, 0.6 + len(panels) * (height + gap), "Size and rank of each ΔW", caption)
    for number, (title, values, colours, top) in enumerate(panels):
        above = 0.95 + number * (height + gap)
        axes = _axes(figure, 0.65, above, width, height)
        image = _draw_table(axes, values, colours, top)
        axes.set_title(title, fontsize=9, loc="left", parse_math=False)
        axes.set_yticks(range(len(targets)), targets)
        axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        axes.annotate("layer", (0, 0), (-5, -4), "axes fraction", "offset points", ha="right", va="top", **_ASIDE)
        _colour_bar(figure, image, 0.65 + width + 0.12, above, height)
    return figure


def _draw_table(axes: Axes, values: NDArray[np.float64], colours: str, top: float | None) -> AxesImage:
    from matplotlib import colormaps

    highest = top if top is not None else float(values[np.isfinite(values)].max(initial=0)) or 1.0
    shades = colormaps[colours].with_extremes(bad=_PALE)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=shades, vmin=0, vmax=highest, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if _luminance(np.asarray(image.to_rgba(np.asarray(value)))[:3]) < 0.5 else "0.15"
        axes.text(column, row, _short(value), ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(np.arange(1, values.shape[1]) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, values.shape[0]) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    return image


def _short(value: float) -> str:
    """Three digits, or a dash where there is no number."""
    if not math.isfinite(value):
        return "–"
    if 0.01 <= value < 1000:
        return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
    return f"{value:.2g}"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


# -- where the perceptual queries looked ---------------------------------------------------------------


def draw_attention(
    picture: NDArray[np.uint8],
    shares: NDArray[np.float32],
    grid: Grid,
    *,
    targets: Sequence[str],
    layers: Sequence[int],
    caption: str = "",
) -> Figure:
    """The picture, and beside it, a row for each target and a column for each layer, what that query looked at.

    All maps have one scale, so that they can be compared, and each patch is drawn as the rectangle that it is.

    Args:
        picture: what the encoder read, `[height, width, 3]`.
        shares: of a query's attention, `[target, layer, rows, columns]`.
        grid: where the patches lie.
        targets: names of the rows.
        layers: numbers of the columns.
        caption: what the figure is about; plain text.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    height, width = picture.shape[:2]
    across = min(1.25, max(0.55, 11 / len(layers)))
    down = across * height / width
    whole = max(2.1, 2 * across)
    left, right, top, gap = 0.3 + whole + 0.75, 1.0, 1.0, 0.06
    maps = len(targets) * (down + gap) - gap
    figure = _figure(
        left + len(layers) * (across + gap) + right,
        top + max(maps, whole * height / width + 0.3) + 0.2,
        "Where the perceptual queries looked",
        caption,
    )
    axes = _axes(figure, 0.3, top, whole, whole * height / width)
    axes.imshow(picture, interpolation="nearest")
    _frame(axes)
    axes.set_xlabel(f"as the encoder read it: {width} x {height} pixels", **_ASIDE)

    scale = ScalarMappable(Normalize(0, 100 * (float(np.nan_to_num(shares).max()) or 1)), _glow())
    for row, column in np.ndindex(shares.shape[:2]):
        axes = _axes(figure, left + column * (across + gap), top + row * (down + gap), across, down)
        _draw_map(axes, picture, scale.to_rgba(100 * shares[row, column]), grid)
        if row == 0:
            axes.set_title(f"layer {layers[column]}" if across > 0.8 else str(layers[column]), fontsize=8)
        if column == 0:
            axes.set_ylabel(targets[row], fontsize=9, rotation=0, ha="right", va="center")
    bar = _colour_bar(figure, scale, left + len(layers) * (across + gap) + 0.1, top, maps)
    bar.set_facecolor(_MIDDLE)
    even = _short(100 / grid.features)
    bar.set_ylabel(f"share of the query's attention, %\n(evenly spread: {even})", **_ASIDE)
    return figure


def _draw_map(axes: Axes, picture: NDArray[np.uint8], colours: Any, grid: Grid) -> None:
    axes.imshow(0.3 + 0.6 * _luminance(picture / 255), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    extent = (-0.5, grid.columns * grid.width - 0.5, grid.rows * grid.height - 0.5, -0.5)
    axes.imshow(colours, extent=extent, interpolation="nearest")
    axes.set_xlim(-0.5, picture.shape[1] - 0.5)
    axes.set_ylim(picture.shape[0] - 0.5, -0.5)
    _frame(axes)


def _frame(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("0.75")


def _glow() -> ListedColormap:
    """From nothing, where the picture stays as it is, over red to a bright yellow that hides it."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    colours = np.asarray(colormaps["inferno"](np.linspace(0.35, 0.95, 256)))
    colours[:, 3] = 0.9 * np.linspace(0, 1, 256) ** 0.7
    return ListedColormap(colours)


# -- what both share -----------------------------------------------------------------------------------


def _figure(width: float, height: float, title: str, caption: str) -> Figure:
    """An empty figure, in inches; not one of pyplot's, which would keep it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.text(0.2 / width, 1 - 0.3 / height, title, fontsize=12, fontweight="bold", va="center")
    figure.text(0.2 / width, 1 - 0.53 / height, caption, va="center", parse_math=False, **_ASIDE)
    return figure


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the top left: what is drawn keeps its size, however much there is of it."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _luminance(colours: NDArray[Any]) -> Any:
    """Of colours `[..., 3]` between 0 and 1."""
    return colours @ np.array([0.299, 0.587, 0.114])


def _colour_bar(figure: Figure, scale: ScalarMappable, left: float, top: float, height: float) -> Axes:
    axes = _axes(figure, left, top, 0.12, height)
    bar = figure.colorbar(scale, cax=axes)
    bar.outline.set_visible(False)  # type: ignore[operator]
    axes.tick_params(labelsize=7, length=2, color="0.4", labelcolor="0.4")
    return axes
