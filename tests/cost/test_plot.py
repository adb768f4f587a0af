"""The figure: what is drawn, and that a wrong path leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlora.cost import Bill, cost
from vlora.cost.plot import TEXTS, draw, plot
from vlora.errors import InputError


@pytest.fixture(scope="module")
def bill() -> Bill:
    return cost(text_tokens=64)


def test_two_panels(bill: Bill) -> None:
    absolute, ratio = draw(bill).axes
    texts = len(TEXTS) + 1
    lines = [line for line in absolute.lines if len(line.get_xdata()) > 2]
    assert len(lines) == 2 * texts
    for tokens, worn in zip(lines[::2], lines[1::2], strict=True):
        assert (sorted(tokens.get_ydata()) == tokens.get_ydata()).all()
        assert len(set(worn.get_ydata())) == 1  # VLoRA has no visual token
    ratios = [line for line in ratio.lines if len(line.get_xdata()) > 2]
    assert len(ratios) == texts
    at = list(lines[2].get_xdata()).index(576)
    assert lines[2].get_label() == "64 text tokens"
    assert lines[2].get_ydata()[at] == pytest.approx(bill.visual_tokens.first_token / 1e9)
    assert ratios[1].get_ydata()[at] == pytest.approx(bill.ratios.first_token)
    for axes in (absolute, ratio):
        assert axes.get_xlabel() == "visual tokens per image (dotted: 576)"
        assert axes.get_title(loc="left")


def test_a_png_is_written(bill: Bill, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_text("an older one")
    plot(bill, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 1000
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]


def test_any_name_can_be_drawn(bill: Bill, tmp_path: Path) -> None:
    """Paths are no formulas, and long ones are cut."""
    from dataclasses import replace

    named = replace(bill, inputs=replace(bill.inputs, llm="/models/$a_b$/" + "x" * 200))
    plot(named, tmp_path / "figure.png")
    title = draw(named).get_suptitle()
    assert "…" + "x" * 47 + " with clip-vit-l-14-336" in title


def test_a_wrong_name(bill: Bill, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not end in \.png"):
        plot(bill, tmp_path / "figure.pdf")


def test_a_failure_leaves_nothing(bill: Bill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        plot(bill, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
