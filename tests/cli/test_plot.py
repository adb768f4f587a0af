"""`vlora plot`: a figure and the numbers in it, without torch; refuses in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Process, Run, one_sentence
from tests.compare.logs import write_run

FALLING = [8.0 * 0.9**number + 0.5 for number in range(40)]


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / "a", FALLING, name="worn", rate=40.0),
        write_run(tmp_path / "b", FALLING[:15], name="read", rate=8.0, paradigm="visual-tokens", tail='{"step": 1'),
    ]


def test_json(run: Run, two: list[Path], tmp_path: Path) -> None:
    result = run("plot", *two, "-o", tmp_path / "out.png", "--json")
    facts = json.loads(result.stdout)
    assert result.exit_code == 0
    assert "The last line of the log" in result.stderr
    assert facts["plot"] == str(tmp_path / "out.png")
    assert facts["shared"] == {"steps": 150, "samples": 2400, "seconds": 160}
    worn, read = facts["runs"]
    assert (worn["name"], worn["paradigm"], worn["cut"]) == ("worn", "weights", False)
    assert (read["name"], read["paradigm"], read["cut"]) == ("read", "visual-tokens", True)
    assert (worn["steps"], worn["samples"], worn["seconds"], worn["samples_per_second"]) == (400, 6400, 160, 40)
    # The same curve: alike after as many samples, and further on after as many seconds.
    assert worn["loss_at_shared"]["samples"] == pytest.approx(read["loss_at_shared"]["samples"], rel=0.1)
    assert worn["loss_at_shared"]["seconds"] == worn["loss"]
    assert worn["loss_at_shared"]["seconds"] < 0.5 * read["loss_at_shared"]["seconds"]
    with Image.open(tmp_path / "out.png") as image:
        assert image.format == "PNG"


def test_text(run: Run, two: list[Path], tmp_path: Path) -> None:
    stdout = run("plot", *two, "--output", tmp_path / "out.png").stdout
    for words in ("worn · weights", "read · visual tokens", "at step 150", "2,400 samples", "160 s", "out.png"):
        assert words in stdout
    alone = run("plot", two[0], "-o", tmp_path / "out.png").stdout
    assert "at step" not in alone


def test_losses_that_are_no_numbers_are_no_json(run: Run, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [float("nan")] * 2)
    facts = json.loads(run("plot", folder, "-o", tmp_path / "out.png", "--json").stdout)
    assert facts["runs"][0]["loss"] is None


def test_torch_is_not_imported(process: Process, two: list[Path], tmp_path: Path) -> None:
    done = process("--debug", "plot", *two, "-o", tmp_path / "out.png", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "matplotlib" in imported
    assert not imported & {"torch", "transformers"}


def test_mistakes(run: Run, two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((two[0], tmp_path / "empty", "-o", tmp_path / "out.png"), "is no run"),
        ((tmp_path / "none", "-o", tmp_path / "out.png"), "is no run"),
        ((two[0], "-o", tmp_path / "out.pdf"), "does not end in .png"),
        ((two[0], "-o", tmp_path / "none" / "out.png"), "does not exist"),
    ):
        assert words in one_sentence(run("plot", *arguments))
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "empty"]
    assert run("plot", "-o", tmp_path / "out.png").exit_code == 2
    assert run("plot", two[0]).exit_code == 2
