"""`vlora train CONFIG --plan`: tables for people, JSON for programs, and nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, one_sentence

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["nano", "easy-vqa", "paper-pretrain", "paper-finetune", "finetune-lora"])
def test_plan(run: Run, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("train", CONFIGS / f"{name}.yaml", "--plan")
    assert result.exit_code == 0, result.output
    for words in (f"{name}: stage", "learn, all together", "as papers count", "peak", "loaders", "docs/plan.md"):
        assert words in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_example_of_the_docs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run("train", CONFIGS / "paper-pretrain.yaml", "--plan").stdout
    written = (CONFIGS.parent / "docs" / "plan.md").read_text(encoding="utf-8")
    for line in shown.splitlines():
        assert line.strip() in written


def test_json(run: Run) -> None:
    options = ("--gpus", 4, "--gpu-memory", 40, "--gpu-tflops", 300, "--utilisation", 0.5)
    amounts = ("--samples", 1000, "--tokens", 20, "--supervised", 10)
    config = CONFIGS / "easy-vqa.yaml"
    result = run("train", config, "--plan", *options, *amounts, "--json", "--set", "train.parallel=ddp")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["hardware"] == {"gpus": 4, "gpu_memory": 40 * 10**9, "gpu_flops": 3e14, "utilisation": 0.5}
    assert (plan["data"]["samples"], plan["text_tokens"], plan["supervised_tokens"]) == (1000, 20, 10)
    assert plan["micro_batch"] == 4
    for side in plan["sides"].values():
        peak = side["memory"]["ddp"]["without_checkpointing"]
        assert 0 < peak["total"] < 40e9
        assert side["samples_per_second"] == pytest.approx(1.5e14 / side["flops"]["without_checkpointing"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tokens", "0"), "tokens is 0"),
        (("--utilisation", "2"), "utilisation is 2"),
        (("--gpu-memory", "nan"), "gpu_memory"),
        (("--set", "model.language_model=nowhere/nothing"), "'nowhere/nothing'"),
        (("--set", "model.vision_options={variant: lite9}"), "model.vision_options"),
        (("--set", "model.generator.layers=[99]"), "99"),
    ],
)
def test_mistakes(run: Run, options: tuple[str, ...], words: str) -> None:
    result = run("train", CONFIGS / "easy-vqa.yaml", "--plan", *options)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    assert words in (result.stderr if "generator" in words + options[-1] else one_sentence(result))
