"""Kill -9 loses nothing, stores nothing twice, and costs one batch at most."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def killed(kind: str, folder: Path, number: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.album.killed", kind, str(folder), str(number)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_at_random_moments(tmp_path: Path) -> None:
    result = killed("chance", tmp_path, 0)
    assert result["kills"] == 20, result
    assert result["unfinished_at_last_kill"] > 0, "the kills came too late to mean anything"
    assert result["files"] == result["expected_files"]
    assert result["pictures"] == result["expected_pictures"]
    assert result["leftovers"] == []
    assert result["workers_left"] == 0
    redone = result["looked_at"] - result["pictures"]
    assert redone <= result["kills"] * result["batch"], "a kill cost more than one batch"


def test_at_every_step_of_a_commit(tmp_path: Path) -> None:
    result = killed("steps", tmp_path, 31)
    assert result["kills"] > 20
