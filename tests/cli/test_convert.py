"""`vlora convert authors`: what it tells, and one sentence about each mistake with nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Process, Run, one_sentence
from tests.export.checkpoints import (
    OFFICIAL,
    Attack,
    as_bin,
    as_one_file,
    change_fields,
    copy_official,
    in_two_parts,
    tensors_of,
    write_large,
)

SOURCE = OFFICIAL / "checkpoint"


def test_text(process: Process, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = process("convert", "authors", SOURCE, out)
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        f"converted   {SOURCE}\n",
        f"to          {out}  (1.9 MB in 4 files, float32)\n",
        "303 of theirs are 392 of ours: 39 of the language model, 298 of the generator, 55 of the vision encoder;",
        "recomputed  model.layers.0.self_attn.rotary_emb.inv_freq and 3 more:",
        f"--model {out}\n",
    ):
        assert words in done.stdout
    # What it advises works.
    asked = process("ask", OFFICIAL / "image.png", "What is in the picture?", "--model", out, "--max-new-tokens", 12)
    expected = json.loads((OFFICIAL / "expected.json").read_text())["answer_text"]
    assert (asked.returncode, asked.stdout) == (0, expected.replace("\x18", "") + "\n")


def test_json(run: Run, tmp_path: Path) -> None:
    result = run("convert", "authors", SOURCE, tmp_path / "out", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert (facts["source"], facts["destination"]) == (str(SOURCE), str(tmp_path / "out"))
    assert facts["read"] + len(facts["recomputed"]) == len(tensors_of(SOURCE))
    assert facts["written"] == {"language_model": 39, "generator": 298, "vision": 55}
    assert facts["dtypes"] == {"float32": facts["bytes"]}
    assert (facts["files"], facts["not_vision"], facts["image_token_id"]) == (4, 0, 360)


def test_folders_of_the_other_parts(run: Run, tmp_path: Path) -> None:
    checkpoint = copy_official(tmp_path)
    llm = in_two_parts(checkpoint)
    clip = (checkpoint.parent / "vision").rename(tmp_path / "clip")
    result = run("convert", "authors", checkpoint, tmp_path / "out", "--llm", llm, "--vision", clip, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["written"] == {"language_model": 39, "generator": 298, "vision": 55}


def test_help(run: Run) -> None:
    assert "authors" in run("convert", "--help").stdout
    result = run("convert", "authors", "--help")
    assert all(word in result.stdout for word in ("SRC", "DST", "--vision", "--llm", "--json"))


def _attack(checkpoint: Path) -> None:
    as_bin(checkpoint)
    torch.save({"lm_head.weight": Attack(checkpoint / "executed")}, checkpoint / "pytorch_model.bin")


def _cut(checkpoint: Path) -> None:
    path = checkpoint / "model-00004-of-00004.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


MISTAKES: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "missing shard": (
        lambda path: (path / "model-00002-of-00004.safetensors").unlink(),
        ("model-00002-of-00004.safetensors is missing", "'model.layers."),
    ),
    "extra key": (
        lambda path: as_one_file(path, tensors_of(path) | {"extra": torch.zeros(1)}),
        ("'extra' in ", "model.safetensors has no place"),
    ),
    "wrong shape": (
        lambda path: as_one_file(path, tensors_of(path) | {"lm_head.weight": torch.zeros(1)}),
        ("'lm_head.weight' in ", "model.safetensors has the shape [1]", "asks for [360, 64]"),
    ),
    "truncated file": (_cut, ("model-00004-of-00004.safetensors is damaged or cut short", "'lm_head.weight'")),
    "malicious pickle": (_attack, ("pytorch_model.bin is refused", "nothing in it was executed")),
    "another width": (
        lambda path: change_fields(path, vlora_dim=16),
        ("'model.mm_projector.visual_proj.weight' in ", "has the shape [32, 32]", "set vlora_dim from 16 to 32"),
    ),
    "no vision encoder": (lambda path: change_fields(path, mm_vision_tower="openai/clip"), ("pass --vision FOLDER",)),
    "generator only": (in_two_parts, ("pass --llm FOLDER",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(run: Run, tmp_path: Path, mistake: str) -> None:
    checkpoint, place = copy_official(tmp_path), tmp_path / "place"
    place.mkdir()
    change, words = MISTAKES[mistake]
    change(checkpoint)
    message = one_sentence(run("convert", "authors", checkpoint, place / "out"))
    assert all(word in message for word in words), message
    assert not any(place.iterdir())
    assert not (checkpoint / "executed").exists()


def test_a_place_that_is_taken(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "is no empty folder" in one_sentence(run("convert", "authors", SOURCE, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_no_checkpoint(run: Run, tmp_path: Path) -> None:
    assert "There is no" in one_sentence(run("convert", "authors", tmp_path / "no", tmp_path / "out"))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "vocab_size": 32000}
    checkpoint, _ = write_large(tmp_path / "large", shard_bytes=40_000_000, **sizes)
    place = tmp_path / "place"
    place.mkdir()
    arguments = ["convert", "authors", str(checkpoint), str(place / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "vlora.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not any(place.glob(".out-*/*.safetensors")):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr.count("\n")) == (130, "", 1), stderr
    assert not any(place.iterdir())
