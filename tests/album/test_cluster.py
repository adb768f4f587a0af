"""Encoding on a Ray cluster: the same album, also when a worker is killed in the middle."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vlora
from tests.album.conftest import draw, make_eyes
from vlora.album import encode, verify
from vlora.album.cluster import encode_on_cluster
from vlora.api import Eyes
from vlora.data import image_hash
from vlora.errors import AlbumError, InputError, MissingDependency


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_is_killed_in_the_middle(photos: Path, eyes: Eyes, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for number in range(60):
        draw(photos / f"more{number}.png", 1000 + number)
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    album, workers = tmp_path / "album", list[int]()

    def watch(processes: list[int]) -> None:
        workers.extend(processes)
        if len(set(workers)) == 1 and len(workers) == 3:
            os.kill(workers[0], signal.SIGKILL)

    report = encode_on_cluster(
        eyes,
        photos,
        album,
        address="local",
        load=functools.partial(make_eyes, "tiny"),
        batch_size=4,
        workers=1,
        watch=watch,
    )
    assert len(set(workers)) == 2, "nobody was killed, or nobody took over"
    assert (report.found, report.encoded, report.repeated) == (72, 70, 1)
    assert [problem.path for problem in report.unreadable] == [str(photos / "bad.png")]
    opened = vlora.album.open(album, eyes=eyes)
    verdict = verify(opened)
    assert verdict.clean, verdict.damage
    assert verdict.leftovers == []
    files = [str(path) for path in photos.rglob("*.*") if path.name != "bad.png"]
    assert sorted(opened) == sorted(files)
    assert opened.info().images == len({image_hash(path) for path in files})
    shards = [name for (name,) in opened.index.rows("SELECT name FROM shards")]
    stored = [image for name in shards for image in opened.shards.whole(name)[1]]
    assert len(stored) == len(set(stored)) == opened.info().images
    # The same as without a cluster.
    encode(eyes, photos, tmp_path / "alone", workers=0)
    alone = vlora.album.open(tmp_path / "alone")
    assert list(alone) == list(opened)
    assert all(torch.allclose(opened[path].values, seen.values, rtol=1e-5, atol=1e-5) for path, seen in alone.items())
    assert encode(eyes, photos, album, workers=0).unchanged == len(files)


def test_no_cluster_there(photos: Path, eyes: Eyes, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(AlbumError, match=r"There is no Ray cluster at '127\.0\.0\.1:1'") as caught:
        encode_on_cluster(eyes, photos, tmp_path / "album", address="127.0.0.1:1", load=lambda: eyes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "album").exists()


def test_refusals(photos: Path, eyes: Eyes, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"")
    for sources, options, words in (
        (tmp_path / "a.tar.gz", {}, "is compressed"),
        (photos, {"workers": 0}, "at least 1"),
        (tmp_path / "no", {}, "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            encode_on_cluster(eyes, sources, tmp_path / "album", address="local", load=lambda: eyes, **options)  # type: ignore[arg-type]


def test_without_ray(monkeypatch: pytest.MonkeyPatch, photos: Path, eyes: Eyes, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)  # what Python finds where a package is not
    with pytest.raises(MissingDependency, match=r"vlora-mllm\[cluster\]"):
        encode_on_cluster(eyes, photos, tmp_path / "album", address="local", load=lambda: eyes)


def test_albums_do_not_import_ray() -> None:
    code = "import sys, vlora.album.cluster; assert not {'ray', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
