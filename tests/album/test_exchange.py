"""What is merged or exported is what was there, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vlora
from tests.album.conftest import draw
from vlora.album import encode, export, merge, verify
from vlora.api import Eyes
from vlora.errors import AlbumError, InputError
from vlora.model import VisualParameters


def test_merge(album: Path, photos: Path, eyes: Eyes, tmp_path: Path) -> None:
    draw(tmp_path / "others" / "a.png", 600)
    draw(tmp_path / "others" / "n0.png", 0)  # a picture that both have
    (tmp_path / "others" / "bad.png").write_bytes(b"")
    encode(eyes, tmp_path / "others", tmp_path / "second", workers=0)
    done = merge([album, tmp_path / "second"], tmp_path / "both")
    assert (done.files, done.images) == (13, 11)
    both, first = vlora.album.open(tmp_path / "both", eyes=eyes), vlora.album.open(album)
    assert len(both) == 13
    assert [problem.path for problem in both.problems()] == [str(tmp_path / "others" / "bad.png")]
    assert verify(both).clean
    assert all(torch.equal(both[path].values, seen.values) for path, seen in first.items())
    again = merge([tmp_path / "second"], tmp_path / "both")
    assert (again.files, again.images) == (2, 0)
    assert len(both) == 13


def test_merge_compresses(album: Path, tmp_path: Path) -> None:
    merge([album], tmp_path / "small", dtype="int8")
    small, large = vlora.album.open(tmp_path / "small"), vlora.album.open(album)
    assert small.dtype == "int8"
    for path, seen in large.items():
        error = (small[path].values - seen.values).abs().amax(-1)
        assert (error <= seen.values.abs().amax(-1) * (0.51 / 127)).all()
    with pytest.raises(InputError, match="cannot become float32 again"):
        merge([tmp_path / "small"], tmp_path / "large", dtype="float32")
    assert not (tmp_path / "large" / "shards").exists() or len(vlora.album.open(tmp_path / "large")) == 0


def test_merge_refuses(album: Path, photos: Path, other_eyes: Eyes, tmp_path: Path) -> None:
    encode(other_eyes, photos, tmp_path / "other", workers=0)
    with pytest.raises(AlbumError, match="belongs to another model"):
        merge([album, tmp_path / "other"], tmp_path / "both")
    with pytest.raises(InputError, match="into itself"):
        merge([album], album)
    with pytest.raises(InputError, match="no album to merge"):
        merge([], tmp_path / "both")
    with pytest.raises(AlbumError, match="There is no album"):
        merge([tmp_path / "nothing"], tmp_path / "both")


def test_export(album: Path, tmp_path: Path) -> None:
    opened = vlora.album.open(album)
    done = export(opened, tmp_path / "seen.safetensors", select=["n1.png", "twin.bmp", "n2.png"])
    assert (done.files, done.images) == (3, 2)
    seen = VisualParameters.load(done.parameters)
    listing = json.loads(Path(done.listing).read_text())
    assert listing["model"] == "tiny"
    for image in listing["images"]:
        assert torch.equal(seen[image["row"]].values, opened[image["path"]].values)
        assert image["hash"] == opened.entry(image["path"]).image
    for target, words in (
        (tmp_path / "seen.txt", "ends in .safetensors"),
        (tmp_path / "no" / "seen.safetensors", "cannot be written"),
        (Path(done.listing) / "seen.safetensors", "cannot be written"),
    ):
        with pytest.raises(InputError, match=words):
            export(opened, target)
    with pytest.raises(InputError, match="No image"):
        export(opened, tmp_path / "none.safetensors", select=["x"])
