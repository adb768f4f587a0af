"""A tiny model with random weights, as a folder; images; and the command line, run in this process or its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import vlora
from tests.cli.tiny import save_whole
from vlora.cli import app

Run = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a full checkpoint."""
    return save_whole(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_eyes(tiny: Path) -> vlora.Eyes:
    """The same, loaded."""
    return vlora.load(tiny, device="cpu")


@pytest.fixture
def loaded(tiny_eyes: vlora.Eyes, monkeypatch: pytest.MonkeyPatch) -> vlora.Eyes:
    """Every command gets the tiny model, whichever it asks for, without the wait for loading."""
    monkeypatch.setattr("vlora.loading.load", lambda *_, **__: tiny_eyes)
    monkeypatch.setattr("vlora.nano.parts.language_model_folder", lambda *_: None)
    return tiny_eyes


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that loads a model fails."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("vlora.loading.load", load)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A red square on white."""
    path = tmp_path / "photo.png"
    image = Image.new("RGB", (48, 32), "white")
    image.paste("red", (8, 8, 24, 24))
    image.save(path)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process: `run("ask", image, question)`."""
    monkeypatch.delenv("VLORA_DEBUG", raising=False)

    def invoke(*arguments: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)

    return invoke


@pytest.fixture
def process() -> Process:
    """The command line in a process of its own, where nothing has silenced the libraries before."""

    def start(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRANSFORMERS_", "HF_HUB_DISABLE", "VLORA_D"))}
        return subprocess.run(
            [sys.executable, "-m", "vlora.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
            env=kept | environment,
        )

    return start


def one_sentence(result: Result) -> str:
    """The only line on stderr of a command that refused, checked to be just that."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in lines[0]
    return lines[0]
