"""`vlora demo`: a row for each question about the images of the repository."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run, one_sentence
from vlora.api import Eyes


@pytest.fixture
def clone(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one image and two questions; the working folder is inside it."""
    root = tmp_path / "clone"
    (root / "examples" / "images").mkdir(parents=True)
    (root / "src").mkdir()
    shutil.copy(photo, root / "examples" / "images" / "photo.png")
    entries = [
        {"image": "photo.png", "question": "what is the shape?", "expected": "rectangle"},
        {"image": "photo.png", "question": "what color is it?", "expected": "red"},
    ]
    (root / "examples" / "demo.json").write_text(json.dumps(entries))
    monkeypatch.chdir(root / "src")
    return root


def test_table(run: Run, loaded: Eyes, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Eyes, "ask", lambda *_, **__: "Red.")
    result = run("demo")
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("visual tokens", "visual parameters (KiB)", "photo.png", "what color is it?", "Red."):
        assert words in result.stdout
    assert result.stdout.count("(expected rectangle)") == 1
    assert "(expected red)" not in result.stdout


def test_json(run: Run, loaded: Eyes, clone: Path) -> None:
    result = run("demo", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    answers = json.loads(result.stdout)["answers"]
    assert [row["expected"] for row in answers] == ["rectangle", "red"]
    for row in answers:
        assert row["visual_tokens"] == 0
        assert row["visual_parameters_bytes"] == 384
        assert set(row["timings_ms"]) == {"encode", "answer"}


@pytest.mark.usefixtures("no_loading")
def test_without_the_repository(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # By name in sys.modules: `vlora.cli.demo` is the command.
    monkeypatch.setattr(sys.modules["vlora.cli.demo"], "LIST", Path("examples", "none.json"))
    assert "run it in a clone" in one_sentence(run("demo"))


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "[1]", '[{"image": "photo.png"}]', '[{"image": 1, "question": 2}]']
)
@pytest.mark.usefixtures("no_loading")
def test_damaged_list(run: Run, clone: Path, content: str) -> None:
    (clone / "examples" / "demo.json").write_text(content)
    assert "demo.json" in one_sentence(run("demo"))


@pytest.mark.usefixtures("no_loading")
def test_missing_image(run: Run, clone: Path) -> None:
    (clone / "examples" / "images" / "photo.png").unlink()
    assert "does not exist" in one_sentence(run("demo"))
