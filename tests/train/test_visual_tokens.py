"""The baseline by the same command: LLaVA of the same parts, the same looks, a checkpoint of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlora.compare.answer import answer
from vlora.train.config import load_config
from vlora.train.run import train

TOKENS = ["paradigm=visual-tokens", "train.stored_dtype=float32", "train.log_ids=true"]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_only_the_projector_learns(tiny_config: Path, tiny_llm: Path, tmp_path: Path) -> None:
    config = load_config(tiny_config, [*TOKENS, "train.learning_rate=0.01"])
    final = train(config, run_dir=tmp_path / "run")
    log = metrics(tmp_path / "run")
    assert [line["step"] for line in log] == list(range(1, 13))
    assert log[-1]["samples"] == 48
    assert all(line["grad_norm"] > 0 for line in log)
    stored, before = load_file(final / "model.safetensors"), load_file(tiny_llm / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(stored[f"language_model.{name}"], tensor), name
    model, processor = AutoModelForImageTextToText.from_pretrained(final), AutoProcessor.from_pretrained(final)
    pictures = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    written = answer(model, processor, pictures, ["What colour is it?"] * 2, 4)
    assert len(written) == 2


def test_both_paradigms_see_the_same_looks(tiny_config: Path, tmp_path: Path) -> None:
    seen = []
    for paradigm in ("weights", "visual-tokens"):
        folder = tmp_path / paradigm
        options = [f"paradigm={paradigm}", "train.steps=4", "train.decay_steps=1", "train.log_ids=true"]
        train(load_config(tiny_config, options), run_dir=folder)
        lines = (folder / "ids-0.jsonl").read_text(encoding="utf-8").splitlines()
        seen.append([json.loads(line)["ids"] for line in lines])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 4


def test_a_resumed_run_is_the_uninterrupted_one(tiny_config: Path, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    config = load_config(tiny_config, TOKENS)
    expected = load_file(train(config, run_dir=whole) / "model.safetensors")
    shutil.copytree(whole, parted)  # as it was when only the checkpoint before the last had been written
    shutil.rmtree(parted / "final")
    shutil.rmtree(parted / "checkpoint-12")
    found = load_file(train(config, run_dir=parted, resume="auto") / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    assert [line["loss"] for line in metrics(parted)] == pytest.approx([line["loss"] for line in metrics(whole)])
