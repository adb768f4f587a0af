"""FLOPs up to the first token of an answer, against the number of visual tokens: absolute, and as a ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import figures
from .bill import Bill, visual_token_inference, vlora_inference

TEXTS = (32, 128, 512)
"""Text lengths that are drawn, beside the one that was asked for."""

_POINTS = 65
_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52")  # told apart with every common colour vision, and in grey
_INK, _GRID = "#333333", "#dddddd"
_DASHED = (0, (4, 2))
_LONGEST_NAME = 48


def curves(bill: Bill, visual_tokens: Sequence[int], text_tokens: int) -> tuple[list[int], int]:
    """FLOPs up to the first token: of the visual-token model for each N, and of VLoRA, which has no N."""
    inputs = replace(bill.inputs, text_tokens=text_tokens)
    tokens = [
        visual_token_inference(bill.shapes, replace(inputs, visual_tokens=count), cached=False).first_token
        for count in visual_tokens
    ]
    return tokens, vlora_inference(bill.shapes, inputs).first_token


def plot(bill: Bill, path: str | Path) -> None:
    """Write the figure of a bill.

    Args:
        bill: whose models and encoder are drawn, over up to twice its visual tokens.
        path: ends in `.png`; written beside its place and renamed, so that what is there is whole.

    Raises:
        InputError, MissingDependency: see `figures.check_file`.
    """
    path = Path(path)
    figures.check_file(path)
    figures.write({path: draw(bill)}, dpi=150)


def draw(bill: Bill) -> Any:
    """The figure, as matplotlib's `Figure`."""
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen

    inputs = bill.inputs
    most = max(2 * inputs.visual_tokens, 64)
    counts = sorted({max(1, round(most * step / (_POINTS - 1))) for step in range(_POINTS)})
    texts = sorted({*TEXTS, inputs.text_tokens})
    figure = Figure(figsize=(11, 5), layout="constrained")
    absolute, ratio = figure.subplots(1, 2)
    for text, colour in zip(texts, _COLOURS, strict=False):
        tokens, worn = curves(bill, counts, text)
        absolute.plot(counts, [flops / 1e9 for flops in tokens], color=colour, lw=2, label=f"{text:,} text tokens")
        absolute.plot(counts, [worn / 1e9] * len(counts), color=colour, lw=2, ls=_DASHED)
        ratio.plot(counts, [worn / flops for flops in tokens], color=colour, lw=2)
    absolute.plot([], [], color=_INK, lw=2, label="visual tokens")
    absolute.plot([], [], color=_INK, lw=2, ls=_DASHED, label="VLoRA, no visual token")
    absolute.set_ylim(bottom=0)
    absolute.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")
    ratio.axhline(1, color=_INK, lw=1)
    ratio.set_ylim(0, max(1.08, *ratio.get_ylim()))
    ratio.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for axes, title in (
        (absolute, "GFLOPs up to the first token of the answer"),
        (ratio, "VLoRA over the visual-token model"),
    ):
        _finish(axes, title, inputs.visual_tokens, most)
    figure.legend(loc="outside lower center", ncols=len(texts) + 2, frameon=False)
    figure.suptitle(
        f"{_models(bill)}: encoder, generator or projector, and prefill", color=_INK, fontsize=12, parse_math=False
    )
    return figure


def _models(bill: Bill) -> str:
    names = dict.fromkeys((bill.inputs.llm, bill.inputs.vision))  # once, if one checkpoint holds both
    return " with ".join(n if len(n) <= _LONGEST_NAME else f"…{n[1 - _LONGEST_NAME :]}" for n in names)


def _finish(axes: Any, title: str, marked: int, most: int) -> None:
    axes.set_title(title, fontsize=11, color=_INK, loc="left")
    axes.set_xlabel(f"visual tokens per image (dotted: {marked:,})")
    axes.set_xlim(0, most)
    axes.axvline(marked, color=_INK, lw=1, ls=":")
    axes.grid(color=_GRID, lw=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
