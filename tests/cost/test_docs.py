"""`docs/cost.md` names every formula, and none that is not there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from tests.cost.test_bill import TABLE
from vlora.cost import formulas

TEXT = (Path(__file__).parents[2] / "docs" / "cost.md").read_text(encoding="utf-8")


def test_every_equation_has_its_function() -> None:
    rows = re.findall(r"^\|.*\| `(\w+)` \|$", TEXT, flags=re.MULTILINE)
    written = {
        name
        for name, member in inspect.getmembers(formulas, inspect.isfunction)
        if member.__module__ == formulas.__name__ and not name.startswith("_")
    }
    assert set(rows) == written


def test_every_function_states_its_equation() -> None:
    for name, function in inspect.getmembers(formulas, inspect.isfunction):
        if function.__module__ == formulas.__name__ and not name.startswith("_"):
            paragraphs = (inspect.getdoc(function) or "").split("\n\n")
            assert len(paragraphs) > 1, f"{name} says what it counts, but not how"


def test_the_table_is_the_tested_one() -> None:
    for text, tokens, vlora, language_side, with_encoder in TABLE:
        cells = [text, tokens, *(" / ".join(map(str, pair)) for pair in (vlora, language_side, with_encoder))]
        assert "| {} | {} | {} | {} % | {} % |".format(*cells) in TEXT


def test_every_tested_file_exists() -> None:
    root = Path(__file__).parents[2]
    names = re.findall(r"`((?:src|tests)/[\w/]+\.py)`", TEXT)
    assert names
    assert all((root / name).is_file() for name in names)
