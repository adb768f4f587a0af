"""`vlora album`: what is in it, whether it is whole; export, merge, prune."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, one_sentence
from tests.cli.test_encode import album, photos  # noqa: F401 - fixtures
from vlora.model import VisualParameters


def ask_json(run: Run, *arguments: object, code: int = 0) -> dict[str, object]:
    result = run("album", *arguments, "--json")
    assert (result.exit_code, result.stderr) == (code, ""), result.output
    return json.loads(result.stdout)


def test_info(run: Run, album: Path, photos: Path) -> None:  # noqa: F811
    facts = ask_json(run, "info", album, "--list")
    assert (facts["files"], facts["images"], facts["unreadable"], facts["shards"]) == (4, 3, 0, 1)
    assert (facts["dtype"], facts["shape"], facts["bytes_per_image"]) == ("float32", [3, 2, 16], 384)
    assert facts["model"] == "nano"  # what was asked for; the fixture answers with the tiny model
    assert set(facts["identity"]) == {"generator", "vision", "language_model", "pixels"}  # type: ignore[call-overload]
    assert [one["path"] for one in facts["list"]] == sorted(  # type: ignore[attr-defined]
        str(path) for path in photos.iterdir() if path.suffix != ".md"
    )
    text = run("album", "info", album, "--list").stdout
    assert "4 that show 3 pictures" in text
    assert str(photos / "twin.bmp") in text


def test_verify(run: Run, album: Path) -> None:  # noqa: F811
    assert ask_json(run, "verify", album) | {"album": ""} == {
        "album": "",
        "clean": True,
        "files": 4,
        "images": 3,
        "damage": [],
        "leftovers": [],
    }
    assert run("album", "verify", album).stdout == "clean: 4 files, 3 pictures\n"
    (shard,) = (album / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-10])
    assert ask_json(run, "verify", album, code=4)["clean"] is False
    damaged = run("album", "verify", album)
    assert damaged.exit_code == 4
    assert "prune" in damaged.stdout
    assert "damaged" in one_sentence(run("ask", album, "what?", "--all"))


def test_export(run: Run, album: Path, tmp_path: Path) -> None:  # noqa: F811
    done = ask_json(run, "export", album, "--select", "[01].png", "-o", tmp_path / "seen.safetensors")
    assert len(VisualParameters.load(tmp_path / "seen.safetensors")) == done["images"] == 2
    assert "either --select" in one_sentence(run("album", "export", album, "-o", tmp_path / "x.safetensors"))
    assert "ends in .safetensors" in one_sentence(run("album", "export", album, "--all", "-o", tmp_path / "x"))
    text = run("album", "export", album, "--all", "-o", tmp_path / "all.safetensors").stdout
    assert text.startswith("3 pictures of 4 files are in ")


def test_merge(run: Run, album: Path, tmp_path: Path) -> None:  # noqa: F811
    done = ask_json(run, "merge", album, "-o", tmp_path / "small", "--dtype", "int8")
    assert (done["files"], done["images"]) == (4, 3)
    assert ask_json(run, "info", tmp_path / "small")["bytes_per_image"] == 96 + 24
    assert "into itself" in one_sentence(run("album", "merge", album, "-o", album))
    assert "4 files went into" in run("album", "merge", album, "-o", tmp_path / "small").stdout


def test_prune(run: Run, album: Path, photos: Path) -> None:  # noqa: F811
    (photos / "1.png").unlink()
    tried = ask_json(run, "prune", album, "--gone", "--dry-run")
    assert (tried["files"], tried["images"], tried["done"]) == ([str(photos / "1.png")], 1, False)
    assert "1 files and 1 pictures taken out" in run("album", "prune", album, "--gone").stdout
    assert ask_json(run, "info", album)["files"] == 3
    assert ask_json(run, "prune", album, "--select", "*")["images"] == 2


@pytest.mark.parametrize("name", ["info", "verify", "prune"])
def test_no_album(run: Run, tmp_path: Path, name: str) -> None:
    assert "There is no album" in one_sentence(run("album", name, tmp_path / "no"))
