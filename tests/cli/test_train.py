"""`vlora train`: hands its options on, and refuses a wrong config before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, one_sentence


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("name: tiny\ntrain: {steps: 3}\n")
    return path


def test_options_are_handed_on(run: Run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlora.train.watch import Progress

    given: dict[str, Any] = {}

    def train(settings: Any, **options: Any) -> Path:
        given.update(options, settings=settings)
        options["report"](Progress(1, 3, 0.5, 2.0, 8.0, 96.0, 61.0))
        return tmp_path / "final"

    monkeypatch.setattr("vlora.train.run.train", train)
    arguments = ("--run-dir", tmp_path / "r", "--resume", "auto", "--set", "train.steps=5", "--set", "train.seed=3")
    result = run("train", config, *arguments, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"name": "tiny", "model": str(tmp_path / "final")}
    assert "step 1 of 3  loss 0.5000  8.0 texts/s  2.0 images/s  96 text tokens/s  0:01:01 left" in result.stderr
    assert (given["settings"].train.steps, given["settings"].train.seed) == (5, 3)
    assert (given["run_dir"], given["resume"]) == (tmp_path / "r", "auto")


def test_wrong_fields_are_listed_together(run: Run, config: Path, tmp_path: Path) -> None:
    config.write_text("nme: x\ntrain: {steps: many, seeed: 1}\nmodel: {generator: {rnk: 4}}\n")
    result = run("train", config, "--run-dir", tmp_path / "r")
    assert (result.exit_code, result.stdout) == (2, "")
    for path in ("nme", "train.steps", "train.seeed", "model.generator.rnk"):
        assert f"  {path}: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("content", [None, "a: [1", "just words", "\0"])
def test_no_config(run: Run, config: Path, content: str | None) -> None:
    if content is None:
        config.unlink()
    else:
        config.write_text(content)
    assert "config file" in one_sentence(run("train", config))


@pytest.mark.parametrize("override", ["steps", "train.=3", "name.x=3"])
def test_wrong_override(run: Run, config: Path, override: str) -> None:
    assert repr(override) in one_sentence(run("train", config, "--set", override))
