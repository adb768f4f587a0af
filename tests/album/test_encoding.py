"""Encoding: each picture once, whatever happens to the files, the disk, or another writer."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import vlora
from tests.album.conftest import draw
from vlora.album import Progress, encode, verify
from vlora.api import Eyes
from vlora.data import image_hash
from vlora.errors import AlbumError, InputError


def clean(album: Path) -> None:
    verdict = verify(vlora.album.open(album))
    assert verdict.clean, verdict.damage
    assert verdict.leftovers == []


@pytest.mark.parametrize("workers", [0, 2])
def test_report(photos: Path, eyes: Eyes, tmp_path: Path, workers: int) -> None:
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xffnonsense")
    (photos / "notes.txt").write_text("no image")
    told = list[Progress]()
    report = encode(eyes, photos, tmp_path / "album", batch_size=3, workers=workers, progress=told.append)
    assert (report.found, report.encoded, report.repeated, report.unchanged) == (12, 10, 1, 0)
    assert [problem.path for problem in report.unreadable] == [str(photos / "bad.jpg")]
    assert report.unreadable[0].reason.startswith(f"{photos / 'bad.jpg'} is a JPEG file that is damaged")
    assert report.passed_over == {".txt": 1}
    assert [(last.done, last.total, last.unreadable) for last in told[-1:]] == [(12, 12, 1)]
    assert told[-1].seconds_left == 0
    assert report.to_dict()["unreadable"][0]["path"] == str(photos / "bad.jpg")
    album = vlora.album.open(tmp_path / "album")
    assert [problem.path for problem in album.problems()] == [str(photos / "bad.jpg")]
    assert album.model == "tiny"
    for entry in album.select():
        assert entry.image == image_hash(entry.path)
        assert (entry.bytes, entry.time) == (os.stat(entry.path).st_size, os.stat(entry.path).st_mtime_ns)
    assert album.info().shards == 1  # those of the batches were joined
    clean(tmp_path / "album")


def test_again_looks_at_nothing(album: Path, photos: Path, eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlora.album.decode.Decoder._read", None)
    report = encode(eyes, photos, album, workers=0)
    assert (report.found, report.unchanged, report.encoded) == (11, 11, 0)


def test_moved_and_touched_files_are_not_decoded(
    album: Path, photos: Path, eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(photos / "n3.png")
    (photos / "n4.png").rename(photos / "moved.png")
    monkeypatch.setattr("vlora.album.decode.open_image", None)
    report = encode(eyes, photos, album, workers=0)
    assert (report.unchanged, report.repeated, report.encoded) == (9, 2, 0)
    assert "moved.png" in vlora.album.open(album)
    clean(album)


def test_reread(album: Path, photos: Path, eyes: Eyes) -> None:
    """A file that changed behind its size and time is found by its bytes."""
    before = os.stat(photos / "n3.png")
    data = bytearray((photos / "n3.png").read_bytes())
    other = draw(photos.parent / "other.png", 55)
    (photos / "n3.png").write_bytes(other.read_bytes()[: len(data)].ljust(len(data), b"\0"))
    os.utime(photos / "n3.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert encode(eyes, photos, album, workers=0).unchanged == 11
    report = encode(eyes, photos, album, workers=0, reread=True)
    assert (report.unchanged, report.repeated, report.encoded) == (0, 10, 1)


def test_changed_file_shows_its_new_picture(album: Path, photos: Path, eyes: Eyes) -> None:
    draw(photos / "n3.png", 56, (30, 30))
    encode(eyes, photos, album, workers=0)
    opened = vlora.album.open(album)
    torch.testing.assert_close(opened["n3.png"].values, eyes.perceive(photos / "n3.png").values, rtol=1e-5, atol=1e-5)
    assert len(opened) == 11
    assert opened.info().unused == 1
    clean(album)


def test_mended_file_is_no_problem_any_more(photos: Path, eyes: Eyes, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"")
    assert len(encode(eyes, photos, tmp_path / "album", workers=0).unreadable) == 1
    assert len(encode(eyes, photos, tmp_path / "album", workers=0).unreadable) == 1  # not silent the second time
    draw(photos / "bad.png", 9)
    assert encode(eyes, photos, tmp_path / "album", workers=0).unreadable == []
    assert vlora.album.open(tmp_path / "album").problems() == []


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar(photos: Path, eyes: Eyes, tmp_path: Path, mode: str) -> None:
    tar = tmp_path / ("photos.tar" + mode[1:].replace(":", "."))
    with tarfile.open(tar, mode) as archive:  # type: ignore[call-overload]
        archive.add(photos, arcname="photos")
    report = encode(eyes, tar, tmp_path / "album", workers=1, batch_size=4)
    assert (report.found, report.encoded, report.repeated) == (11, 10, 1)
    album = vlora.album.open(tmp_path / "album")
    assert torch.equal(album["inner/n0.png"].values, album[f"{tar}::photos/inner/n0.png"].values)
    torch.testing.assert_close(album["n5.png"].values, eyes.perceive(photos / "n5.png").values, rtol=1e-5, atol=1e-5)
    assert encode(eyes, [tar, photos], tmp_path / "album", workers=0).encoded == 0  # the same pictures


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_precision(photos: Path, eyes: Eyes, tmp_path: Path, dtype: str) -> None:
    encode(eyes, photos, tmp_path / "album", workers=0, dtype=dtype)  # type: ignore[arg-type]
    album = vlora.album.open(tmp_path / "album")
    seen, kept = eyes.perceive(photos / "n2.png").values, album["n2.png"].values
    assert (seen - kept).abs().max() <= {"float32": 1e-5, "bfloat16": 2**-8, "int8": 0.51 / 127}[
        dtype
    ] * seen.abs().max()
    assert album.info().bytes_per_image == {"float32": 384, "bfloat16": 192, "int8": 96 + 24}[dtype]
    encode(eyes, draw(photos / "more.png", 8), tmp_path / "album", workers=0)  # in the album's precision
    with pytest.raises(InputError, match=f"stored in {dtype}"):
        encode(eyes, photos, tmp_path / "album", dtype="int8" if dtype != "int8" else "float32")
    clean(tmp_path / "album")


def test_refused_before_anything_is_written(photos: Path, eyes: Eyes, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.heic").write_bytes(b"x")
    for sources, target, options, words in (
        (photos, tmp_path / "a", {"batch_size": 0}, "at least 1"),
        (photos, tmp_path / "a", {"dtype": "int4"}, "no precision"),
        (tmp_path / "no", tmp_path / "a", {}, "does not exist"),
        ([], tmp_path / "a", {}, "nothing to encode"),
        (photos, photos, {}, "holds other things"),
        (photos, photos / "n1.png", {}, "is a file"),
    ):
        with pytest.raises(InputError, match=words):
            encode(eyes, sources, target, **options)
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match=r"no image in what was named \(1 \.heic\)"):
        encode(eyes, tmp_path / "empty", tmp_path / "a")


def test_two_writers_at_once(photos: Path, eyes: Eyes, tmp_path: Path) -> None:
    """Both finish, every file is listed, every picture is stored once."""
    for number in range(40):
        draw(photos / f"more{number}.png", 1000 + number)
    children = list[int]()
    for _ in range(2):
        if (child := os.fork()) == 0:
            try:
                torch.set_num_threads(1)
                encode(eyes, photos, tmp_path / "album", batch_size=2, workers=0)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    album = vlora.album.open(tmp_path / "album")
    assert len(album) == 51
    shards = [name for (name,) in album.index.rows("SELECT name FROM shards")]
    listed = sorted(image for name in shards for image in album.shards.whole(name)[1])
    assert listed == sorted({image_hash(path) for path in photos.rglob("*.*")})
    clean(tmp_path / "album")


def test_picture_that_is_taken_out_meanwhile(
    album: Path, photos: Path, eyes: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process prunes what this one has just found to be known: it is read again."""
    os.utime(photos / "n3.png")
    stored = vlora.album.encoding.Work.stored
    pruned = list[int]()

    def prune_first(self: object, names: object) -> set[str]:
        if not pruned:
            pruned.append(vlora.album.prune(album, select=["n3.png"]).images)
        return stored(self, names)  # type: ignore[arg-type]

    monkeypatch.setattr("vlora.album.encoding.Work.stored", prune_first)
    report = encode(eyes, photos, album, workers=0)
    assert pruned == [1]
    assert report.encoded == 1
    assert "n3.png" in vlora.album.open(album)
    clean(album)


def kill_myself(*_: object, **__: object) -> None:
    """What a decoder does that runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_decoding_worker(album: Path, photos: Path, eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(photos / "new.png", 70)
    monkeypatch.setattr("vlora.album.decode.open_image", kill_myself)
    with pytest.raises(AlbumError, match="decoding worker was killed"):
        encode(eyes, photos, album, workers=1)
    assert len(vlora.album.open(album)) == 11
    clean(album)


# -- bad disks --------------------------------------------------------------------------------------------


@contextmanager
def file_size_limit(size: int) -> Generator[None]:
    """No file may grow beyond so many bytes: what a full disk looks like to a program."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1000, 20_000, 60_000])
def test_no_room(photos: Path, eyes: Eyes, tmp_path: Path, size: int) -> None:
    for number in range(200):
        draw(photos / f"more{number}.png", 1000 + number, (4, 4))
    encode(eyes, photos / "inner", tmp_path / "album", workers=0)
    with file_size_limit(size), pytest.raises(AlbumError, match=r"cannot be (read or )?written|make room") as caught:
        encode(eyes, photos, tmp_path / "album", workers=0, batch_size=128)
    assert "\n" not in str(caught.value)
    assert len(vlora.album.open(tmp_path / "album")) >= 2
    clean(tmp_path / "album")
    assert encode(eyes, photos, tmp_path / "album", workers=0).found == 211
    assert len(vlora.album.open(tmp_path / "album")) == 211


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_full_disk(photos: Path, eyes: Eyes, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a disk")
    try:
        for number in range(300):
            draw(photos / f"more{number}.png", 1000 + number, (4, 4))
        with pytest.raises(AlbumError, match="make room"):
            encode(eyes, photos, disk / "album", workers=0, batch_size=16)
        kept = len(vlora.album.open(disk / "album"))
        assert kept > 16
        clean(disk / "album")
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert encode(eyes, photos, disk / "album", workers=0).unchanged == kept
        assert len(vlora.album.open(disk / "album")) == 311
        clean(disk / "album")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@contextmanager
def as_nobody() -> Generator[None]:
    """Root may write anywhere, so somebody else has to try."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_read_only_album(album: Path, photos: Path, eyes: Eyes, tmp_path: Path) -> None:
    draw(photos / "new.png", 70)
    for path in (album, album / "shards"):
        path.chmod(0o555)
    for path in (*album.glob("*.sqlite"), *album.glob("shards/*")):
        path.chmod(0o444)
    for path in (photos, *photos.rglob("*"), *tmp_path.parents, tmp_path):
        if path.stat().st_uid == os.getuid() and path not in (Path("/"), Path("/tmp")):
            path.chmod(path.stat().st_mode | 0o555)
    with as_nobody():
        with pytest.raises(AlbumError, match=r"read-only or not yours|permission denied"):
            encode(eyes, photos, album, workers=0)
        with pytest.raises(AlbumError, match="permission denied"):
            encode(eyes, photos, tmp_path / "new", workers=0)
        with vlora.album.open(album) as opened:  # it can be read
            assert len(opened) == len(list(opened.values())) == 11
    clean(album)
