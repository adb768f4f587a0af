"""A model that cannot be loaded is one sentence, whatever is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests.cli.conftest import Run, one_sentence
from tests.cli.tiny import save_in_parts, tiny_language_model, tiny_tokenizer


@pytest.fixture(scope="module")
def in_parts_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_in_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def in_parts(in_parts_once: Path, tmp_path: Path) -> Path:
    """A generator-only checkpoint with its two models, to be damaged."""
    shutil.copytree(in_parts_once.parent, tmp_path / "parts")
    folder = tmp_path / "parts" / "generator"
    record = json.loads((folder / "parts.json").read_text())
    record["language_model"]["source"] = str(tmp_path / "parts" / "llm")
    record["vision"]["source"] = str(tmp_path / "parts" / "vision")
    (folder / "parts.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def whole(tiny: Path, tmp_path: Path) -> Path:
    """A full checkpoint, to be damaged."""
    return shutil.copytree(tiny, tmp_path / "whole")


def refused(run: Run, photo: Path, model: object) -> str:
    return one_sentence(run("ask", photo, "what?", "--model", model, "--max-new-tokens", 2))


def test_in_parts(run: Run, photo: Path, in_parts: Path) -> None:
    result = run("ask", photo, "what?", "--model", in_parts, "--max-new-tokens", 2)
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["nonsense", "no/such-model", "./no/such/folder", "", "~"])
def test_unknown_name(run: Run, photo: Path, name: str) -> None:
    assert "nano" in refused(run, photo, name)


def test_empty_folder(run: Run, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "without a config.json" in refused(run, photo, tmp_path / "empty")


def test_file_as_model(run: Run, photo: Path) -> None:
    assert str(photo.name) in refused(run, photo, photo)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path: Path) -> None:
    path.write_bytes(b"nonsense" * 100)


def damages(*names: str) -> list[Any]:
    """Every damage to every file."""
    return [
        pytest.param(name, damage, id=f"{name}-{word}")
        for name in names
        for word, damage in (("cut", cut), ("garbled", garble), ("missing", Path.unlink))
    ]


@pytest.mark.parametrize(
    ("name", "damage"),
    damages("model.safetensors", "config.json", "processor_config.json", "tokenizer.json"),
)
def test_damaged_whole(run: Run, photo: Path, whole: Path, damage: Callable[[Path], None], name: str) -> None:
    damage(whole / name)
    refused(run, photo, whole)


@pytest.mark.parametrize(
    ("name", "damage"),
    damages("generator.safetensors", "config.json", "parts.json", "preprocessor_config.json"),
)
def test_damaged_parts(run: Run, photo: Path, in_parts: Path, damage: Callable[[Path], None], name: str) -> None:
    damage(in_parts / name)
    refused(run, photo, in_parts)


def test_generator_of_another_language_model(run: Run, photo: Path, in_parts: Path) -> None:
    tiny_language_model(seed=7).save_pretrained(in_parts.parent / "llm")
    assert "was made for the language model" in refused(run, photo, in_parts)


def test_generator_whose_language_model_is_gone(run: Run, photo: Path, in_parts: Path) -> None:
    shutil.rmtree(in_parts.parent / "llm")
    assert "llm" in refused(run, photo, in_parts)


def test_unsupported_family(run: Run, photo: Path, in_parts: Path) -> None:
    llm = in_parts.parent / "llm"
    shutil.rmtree(llm)
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=259)).save_pretrained(llm)
    tiny_tokenizer().save_pretrained(llm)
    sentence = refused(run, photo, in_parts)
    assert "'gpt2'" in sentence
    assert "llama" in sentence


def test_plain_language_model(run: Run, photo: Path, in_parts: Path) -> None:
    assert "type 'llama', not a VLoRA checkpoint" in refused(run, photo, in_parts.parent / "llm")
