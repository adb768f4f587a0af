"""`vlora data fetch`: a table for people, an object for programs, a sentence for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, one_sentence
from tests.data.sets.nano import packed
from vlora.data.sets.nano import fetch


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> packed.Made:
    """Small packages, in place of those of nano; and a cache of the test's own."""
    made = packed.make(tmp_path / "registry")
    monkeypatch.setattr(fetch, "PACKAGES", made.packages)
    monkeypatch.setenv("VLORA_CACHE", str(tmp_path / "cache"))
    return made


def test_a_person_sees_a_table(run: Run, made: packed.Made, tmp_path: Path) -> None:
    result = run("data", "fetch", "nano", "--from", made.folder)
    assert result.exit_code == 0, result.output
    for one in made.packages:
        (line,) = (line for line in result.stdout.splitlines() if line.strip().startswith(one.name))
        assert line.split()[1] == one.version
        assert line.split()[-1] == "CC0-1.0"
    assert f"5 files, {len_of(tmp_path)}, in {tmp_path / 'cache/nano-data'}" in result.stdout
    assert result.stderr.startswith("3 packages are read where they are")
    again = run("data", "fetch", "nano")
    assert again.exit_code == 0, again.output
    assert again.stdout.startswith("The nano set is there: 5 files")
    assert again.stderr == ""


def len_of(tmp_path: Path) -> str:
    """The bytes of the set, as they are shown."""
    size = sum(path.stat().st_size for path in (tmp_path / "cache/nano-data").rglob("*.*") if path.suffix != ".json")
    return f"{size} bytes" if size < 1000 else f"{size / 1000:.1f} kB"


def test_a_program_reads_an_object(run: Run, made: packed.Made, tmp_path: Path) -> None:
    for fetched in (True, False):
        result = run("data", "fetch", "nano", "--from", made.folder, "--json")
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert (answer["folder"], answer["files"], answer["fetched"]) == (str(tmp_path / "cache/nano-data"), 5, fetched)
        assert [(one["name"], one["licence"], one["sha256"]) for one in answer["packages"]] == [
            (one.name, one.licence, one.sha256) for one in made.packages
        ]


def test_mistakes_are_one_sentence(
    run: Run, made: packed.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "There is no set 'micro' to fetch: choose from nano." in one_sentence(run("data", "fetch", "micro"))
    assert "is no folder" in one_sentence(run("data", "fetch", "nano", "--from", tmp_path / "nothing"))
    monkeypatch.setenv("PATH", "")
    assert "install what is missing" in one_sentence(run("data", "fetch", "nano"))
    assert not (tmp_path / "cache/nano-data").exists()


def test_interrupted_is_130(run: Run, made: packed.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "unpack", interrupt)
    assert run("data", "fetch", "nano", "--from", made.folder).exit_code == 130
    assert not (tmp_path / "cache/nano-data").exists()
    assert not (tmp_path / "cache/nano-data.partial").exists()
