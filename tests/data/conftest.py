"""Files to read, for every test of the data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.data.made import Write, png


@pytest.fixture
def jsonl(tmp_path: Path) -> Write:
    """Write an object a line."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with 0.png to 5.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of big files are kept with the test, not with the user."""
    monkeypatch.setenv("VLORA_CACHE", str(tmp_path / "cache"))
