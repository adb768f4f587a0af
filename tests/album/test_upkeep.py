"""verify finds every damage; prune, merge and export keep what they do not touch."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vlora
from tests.album.conftest import draw
from vlora.album import encode, prune, verify
from vlora.album.writer import Writer
from vlora.api import Eyes
from vlora.errors import AlbumError, InputError

Harm = Callable[[Path], object]


def sql(album: Path, statement: str) -> None:
    connection = sqlite3.connect(album / "album.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()


def shard_of(album: Path) -> Path:
    (shard,) = (album / "shards").iterdir()
    return shard


def cut(album: Path) -> None:
    path = shard_of(album)
    path.write_bytes(path.read_bytes()[:-100])


def flip(album: Path) -> None:
    path = shard_of(album)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_head(album: Path) -> None:
    path = shard_of(album)
    data = bytearray(path.read_bytes())
    data[3] ^= 255
    path.write_bytes(data)


def test_clean(album: Path) -> None:
    told = list[tuple[int, int]]()
    verdict = verify(vlora.album.open(album), progress=lambda *numbers: told.append(numbers))
    assert verdict.to_dict() == {
        "album": str(album),
        "clean": True,
        "files": 11,
        "images": 10,
        "damage": [],
        "leftovers": [],
    }
    assert told[-1] == (10, 10)


@pytest.mark.parametrize(
    ("harm", "images", "words"),
    [
        (cut, 10, "bytes"),
        (flip, 1, "checksum"),
        (flip_head, 10, "damaged"),
        (lambda album: shard_of(album).unlink(), 10, "no such file"),
        (lambda album: sql(album, "UPDATE images SET row = 99 WHERE row = 4"), 1, "disagree"),
        (lambda album: sql(album, "UPDATE images SET row = 1 - row WHERE row < 2"), 2, "disagree"),
        (lambda album: sql(album, "UPDATE images SET sum = 'x' WHERE row = 0"), 1, "checksum"),
        (lambda album: sql(album, "UPDATE images SET shard = 99 WHERE row = 3"), 1, "there is not"),
    ],
    ids=["cut", "flip", "head", "missing", "row", "swapped", "sum", "shard"],
)
def test_damaged_parameters(album: Path, photos: Path, eyes: Eyes, harm: Harm, images: int, words: str) -> None:
    """What is damaged is found, refused where it is read, taken out, and encoded again; the rest stays."""
    good = {path: seen.values for path, seen in vlora.album.open(album).items()}
    harm(album)
    opened = vlora.album.open(album)
    verdict = verify(opened)
    assert not verdict.clean
    assert len(verdict.images_lost) == images
    assert any(words in one.what for one in verdict.damage), verdict.damage
    refused = 0
    for path, values in good.items():
        if opened.entry(path).image in verdict.images_lost:
            with pytest.raises(AlbumError, match="prune --damaged"):
                opened[path]
            refused += 1
        else:
            assert torch.equal(opened[path].values, values)
    assert refused >= images
    opened.close()
    assert prune(album, damaged=True).images == images
    assert verify(vlora.album.open(album)).clean
    assert encode(eyes, photos, album, workers=0).encoded == images
    mended = vlora.album.open(album)
    assert verify(mended).clean
    assert list(mended) == list(good)
    assert all(torch.allclose(mended[path].values, values, rtol=1e-5, atol=1e-5) for path, values in good.items())


@pytest.mark.parametrize(
    "change",
    [
        "image = (SELECT image FROM files WHERE name = 'n7.png')",
        "path = path || 'x', name = 'n3.pngx'",
        "bytes = bytes + 1",
        "time = 0",
        "archive = 'x.tar'",
    ],
)
def test_tampered_rows(album: Path, photos: Path, eyes: Eyes, change: str) -> None:
    sql(album, f"UPDATE files SET {change} WHERE name = 'n3.png'")
    opened = vlora.album.open(album)
    assert [one.what for one in verify(opened).damage] == ["its row of the index was altered"]
    with pytest.raises(AlbumError, match="was altered"):
        opened["n3.png" + "x" * ("pngx" in change)]
    assert len(opened["n4.png"]) == 1
    assert len(prune(album, damaged=True).files) == 1
    encode(eyes, photos, album, workers=0)
    opened = vlora.album.open(album)
    assert verify(opened).clean
    torch.testing.assert_close(opened["n3.png"].values, eyes.perceive(photos / "n3.png").values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda album: (album / "album.sqlite").write_bytes(b"nonsense" * 1000), "damaged index"),
        (lambda album: (album / "album.sqlite").write_bytes((album / "album.sqlite").read_bytes()[:5000]), "damaged"),
        (lambda album: sql(album, "DROP TABLE meta"), "damaged index"),
        (lambda album: sql(album, "DELETE FROM meta WHERE key = 'identity'"), "damaged index"),
        (lambda album: sql(album, "UPDATE meta SET value = '{}' WHERE key = 'identity'"), "damaged index"),
        (lambda album: sql(album, "UPDATE meta SET value = 'a b' WHERE key = 'shape'"), "damaged index"),
        (lambda album: sql(album, "UPDATE meta SET value = 'int4' WHERE key = 'dtype'"), "damaged index"),
        (lambda album: sql(album, "PRAGMA user_version = 99"), "update vlora"),
        (lambda album: sql(album, "PRAGMA application_id = 7"), "not the index of an album"),
        (lambda album: (album / "album.sqlite").unlink(), "There is no album"),
    ],
    ids=["noise", "cut", "table", "meta", "identity", "shape", "dtype", "version", "other", "gone"],
)
def test_damaged_index_is_one_sentence(album: Path, eyes: Eyes, photos: Path, harm: Harm, words: str) -> None:
    harm(album)
    with pytest.raises(AlbumError, match=words) as caught:
        list(vlora.album.open(album).items())
    assert str(caught.value).count("\n") == 0
    if (album / "album.sqlite").exists():
        with pytest.raises(AlbumError):
            encode(eyes, photos, album, workers=0)


# -- prune ------------------------------------------------------------------------------------------------


def test_prune_selected(album: Path) -> None:
    opened = vlora.album.open(album)
    kept = {path: opened[path].values for path in opened if "n1.png" not in path and "n2.png" not in path}
    before = shard_of(album).stat().st_size
    tried = prune(album, select=["n[12].png"], dry_run=True)
    assert (len(tried.files), tried.images, tried.done) == (2, 1, False)  # n1.png has a twin
    assert len(opened) == 11
    done = prune(album, select=["n[12].png"])
    assert (done.files, done.images, done.done) == (tried.files, 1, True)
    assert done.bytes_freed == before - shard_of(album).stat().st_size > 0
    assert {path: seen.values.tolist() for path, seen in opened.items()} == {p: v.tolist() for p, v in kept.items()}
    assert verify(opened).clean


def test_prune_gone(album: Path, photos: Path) -> None:
    (photos / "n5.png").unlink()
    (photos / "inner" / "twin.bmp").unlink()
    done = prune(album, gone=True)
    assert [os.path.basename(path) for path in done.files] == ["twin.bmp", "n5.png"]
    assert done.images == 1
    photos.rename(photos.parent / "elsewhere")
    with pytest.raises(InputError, match="All 9 files"):
        prune(album, gone=True)
    assert len(vlora.album.open(album)) == 9


def test_prune_unused(album: Path, photos: Path, eyes: Eyes) -> None:
    draw(photos / "n5.png", 500)
    encode(eyes, photos, album, workers=0)
    assert prune(album).to_dict() | {"bytes_freed": 0} == {
        "album": str(album),
        "files": (),
        "images": 1,
        "bytes_freed": 0,
        "done": True,
    }
    assert vlora.album.open(album).info().images == 10


def test_prune_everything(album: Path, eyes: Eyes, photos: Path) -> None:
    assert len(prune(album, select=["*"]).files) == 11
    opened = vlora.album.open(album)
    assert (len(opened), list((album / "shards").iterdir())) == (0, [])
    assert verify(opened).clean
    assert encode(eyes, photos, album, workers=0).encoded == 10


def test_leftovers_are_told_and_removed(album: Path, eyes: Eyes, photos: Path) -> None:
    for name in ("a.safetensors", "b.safetensors.partial"):
        (album / "shards" / name).write_bytes(b"x")
    verdict = verify(vlora.album.open(album))
    assert verdict.clean
    assert verdict.leftovers == ["a.safetensors", "b.safetensors.partial"]
    encode(eyes, photos, album, workers=0)
    assert verify(vlora.album.open(album)).leftovers == []


# -- compaction -------------------------------------------------------------------------------------------


def test_compaction_keeps_shards_bounded(
    photos: Path, eyes: Eyes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlora.album.writer.SMALL", 4)
    monkeypatch.setattr("vlora.album.writer.FULL", 3000)  # 384 bytes a picture, and the head of the file
    for number in range(20):
        draw(photos / f"more{number}.png", 1000 + number)
    most, commit = 0, Writer.commit

    def counting(self: Writer, *arguments: object) -> object:
        nonlocal most
        done = commit(self, *arguments)  # type: ignore[arg-type]
        most = max(most, self.index.value("SELECT COUNT(*) FROM shards WHERE bytes < 1500"))
        return done

    monkeypatch.setattr(Writer, "commit", counting)
    encode(eyes, photos, tmp_path / "album", batch_size=1, workers=0)
    opened = vlora.album.open(tmp_path / "album")
    assert most <= 5
    assert 30 * 384 / 3000 <= opened.info().shards <= 12
    assert verify(opened).clean
    assert all(
        torch.allclose(seen.values, eyes.perceive(path).values, rtol=1e-5, atol=1e-5) for path, seen in opened.items()
    )


def test_compaction_passes_over_damage(album: Path, photos: Path, eyes: Eyes) -> None:
    cut(album)
    encode(eyes, draw(photos.parent / "a.png", 300), album, workers=0)
    encode(eyes, draw(photos.parent / "b.png", 301), album, workers=0)
    opened = vlora.album.open(album)
    assert opened.info().shards == 2
    assert len(opened["a.png"]) == len(opened["b.png"]) == 1
    assert len(verify(opened).images_lost) == 10
