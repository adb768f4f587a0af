"""`vlora inspect`: counts that add up, with and without an image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Process, Run, one_sentence
from vlora.api import Eyes


def test_model(run: Run, tiny_eyes: Eyes, tiny: Path) -> None:
    result = run("inspect", "--model", tiny, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    parts = facts["parts"]
    assert sum(part["parameters"] for part in parts.values()) == sum(p.numel() for p in tiny_eyes.model.parameters())
    assert parts["generator"]["trainable"]
    assert {part["dtype"] for part in parts.values()} == {"float32"}
    assert facts["layers"] == [0, 1]
    assert [(t["target"], t["in_dim"], t["out_dim"], t["mergeable"]) for t in facts["targets"]] == [
        ("q", 32, 32, True),
        ("v", 32, 16, True),
        ("mlp", 32, 32, False),
    ]
    assert (facts["visual_parameters_bytes"], facts["perceptual_weights_bytes"]) == (384, 2 * 3 * 32 * 4 * 4)
    assert facts["generator"]["rank"] == 4
    assert "deltas" not in facts


def test_bytes_are_those_of_a_real_image(run: Run, loaded: Eyes, photo: Path) -> None:
    seen = loaded.perceive(str(photo))
    facts = json.loads(run("inspect", photo, "--json").stdout)
    assert facts["visual_parameters_bytes"] == seen.nbytes
    assert len(facts["deltas"]) == 6
    for row in facts["deltas"]:
        assert row["norm"] > 0
        assert (row["relative_norm"] is None) == (row["target"] == "mlp")
        assert 1 <= row["stable_rank"] <= row["effective_rank"] <= 4 + 1e-9


def test_text(run: Run, loaded: Eyes, photo: Path) -> None:
    result = run("inspect", photo)
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("clip_vision_model", "vlora_generator", "llama", "a bypass", "0 visual tokens", "effective rank"):
        assert words in result.stdout


@pytest.mark.usefixtures("no_loading")
def test_bad_image(run: Run, tmp_path: Path) -> None:
    assert "does not exist" in one_sentence(run("inspect", tmp_path / "no.png"))


def test_nano(process: Process, photo: Path) -> None:
    done = process("inspect", photo, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    trainable = {name: part["trainable"] for name, part in facts["parts"].items()}
    assert trainable == {"vision": False, "generator": True, "language_model": False}
    assert facts["parts"]["language_model"]["parameters"] == 134_515_008
    assert all(target["mergeable"] for target in facts["targets"])
    assert len(facts["deltas"]) == len(facts["layers"]) * len(facts["targets"])
