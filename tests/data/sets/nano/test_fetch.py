"""The set comes whole or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from tests.data.sets.nano import packed
from vlora.data.sets.nano import fetch as module
from vlora.data.sets.nano.fetch import fetch, folder
from vlora.data.sets.nano.packages import PACKAGES, Part
from vlora.errors import DataError, InputError, MissingDependency, VLoRAError

posix = pytest.mark.skipif(os.name != "posix", reason="the stand-ins for npm and apt-get are scripts")

STUCK = """#!/bin/sh
echo $$ > {calls}
printf half > half.part
exec sleep 600
"""

SAYS = """#!/bin/sh
echo "{says}" >&2
exit 1
"""


@pytest.fixture
def made(tmp_path: Path) -> packed.Made:
    return packed.make(tmp_path / "registry")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where VLORA_CACHE points to in these tests."""
    return tmp_path / "cache"


@pytest.fixture
def calls(made: packed.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tools that take packages from a folder: pip itself, and stand-ins for npm and apt-get."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.folder))
    return packed.install(tmp_path / "bin", made.folder)


def left(cache: Path) -> list[str]:
    """What is in the cache, but the lock."""
    names = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
    return sorted(names - {"nano-data.lock"})


WHOLE = [
    "nano-data/SOURCES.json",
    "nano-data/backgrounds/again.jpg",
    "nano-data/backgrounds/wide.jpg",
    "nano-data/digits/digits.csv.gz",
    "nano-data/emoji/a.png",
    "nano-data/emoji/b.png",
]


def test_from_a_folder(made: packed.Made, cache: Path) -> None:
    said: list[str] = []
    found = fetch(made.packages, source=made.folder, notify=said.append)
    assert left(cache) == WHOLE
    assert (found.folder, found.files, found.kept) == (cache / "nano-data", 5, False)
    assert found.bytes == sum(path.stat().st_size for path in found.folder.rglob("*.*") if path.name != "SOURCES.json")
    assert len(said) == 1
    with Image.open(found.folder / "backgrounds/wide.jpg") as image:
        assert min(image.size) <= 8
    sources = json.loads((found.folder / "SOURCES.json").read_text())
    assert [one["files"] for one in sources["packages"]] == [2, 2, 1]
    assert {one["licence"] for one in sources["packages"]} == {"CC0-1.0"}
    assert [one["sha256"] for one in sources["packages"]] == [one.sha256 for one in made.packages]
    assert sorted(made.folder.iterdir()), "the packages that were given stay"


@posix
def test_with_tools(made: packed.Made, cache: Path, calls: Path) -> None:
    told: list[tuple[str, int, int]] = []
    fetch(made.packages, tell=lambda *now: told.append(now))
    assert left(cache) == WHOLE
    assert calls.read_text().split() == ["tiny-emoji-1.0", "tiny-backgrounds_1:1.0-1"]
    total = sum(one.size for one in made.packages)
    assert {now[2] for now in told} == {total}
    for stage in ("fetch", "unpack"):
        done = [now[1] for now in told if now[0].startswith(stage)]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, total)


def test_again_is_nothing_to_do(made: packed.Made, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch(made.packages, source=made.folder)
    shutil.rmtree(made.folder)
    monkeypatch.setenv("PATH", "")
    assert fetch(made.packages) == replace(first, kept=True)
    assert left(cache) == WHOLE


def test_what_was_lost_or_cut_is_fetched_again(made: packed.Made, cache: Path) -> None:
    picture = fetch(made.packages, source=made.folder).folder / "emoji/a.png"
    content = picture.read_bytes()
    for damage in (
        picture.unlink,
        lambda: picture.write_bytes(content[:-1]),
        picture.parent.parent.joinpath("SOURCES.json").unlink,
    ):
        damage()
        assert not fetch(made.packages, source=made.folder).kept
        assert picture.read_bytes() == content
        assert left(cache) == WHOLE


def test_another_table_is_another_set(made: packed.Made, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(made.packages, source=made.folder)
    monkeypatch.setattr(module, "PACKAGES", made.packages[:1])
    with pytest.raises(DataError, match="another version of VLoRA: run `vlora data fetch nano`"):
        folder()
    assert not fetch(source=made.folder).kept
    assert left(cache) == ["nano-data/SOURCES.json", "nano-data/emoji/a.png", "nano-data/emoji/b.png"]


def test_folder(made: packed.Made, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", made.packages)
    with pytest.raises(MissingDependency, match="run `vlora data fetch nano`"):
        folder()
    fetch(source=made.folder)
    assert folder() == cache / "nano-data"
    for content in ("", "[]", "{}", '{"format": 3, "packages": [1], "files": 1, "bytes": 1}'):
        (cache / "nano-data/SOURCES.json").write_text(content)
        with pytest.raises(DataError, match="run `vlora data fetch nano`"):
            folder()


# -- what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["same", "other"])
def test_another_file_is_refused(made: packed.Made, cache: Path, size: str) -> None:
    place = made.folder / made.packages[1].file
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(bytes(content) if size == "same" else bytes(content) + b"x")
    with pytest.raises(DataError, match="is damaged or another file"):
        fetch(made.packages, source=made.folder)
    assert left(cache) == []


@posix
def test_a_download_of_another_file_is_not_kept(made: packed.Made, cache: Path, calls: Path) -> None:
    (made.folder / made.packages[1].file).write_bytes(b"x")
    with pytest.raises(DataError, match=r"has 1 bytes, but that of tiny-backgrounds 1:1\.0-1 has"):
        fetch(made.packages)
    assert left(cache) == [f"nano-data.partial/packages/{made.packages[0].file}"]


@posix
def test_an_interruption_and_going_on(
    made: packed.Made, cache: Path, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = packed.install(tmp_path / "stuck", made.folder, script=STUCK)
    (tmp_path / "stuck/npm").write_bytes((tmp_path / "bin/npm").read_bytes())
    monkeypatch.setenv("PATH", f"{tmp_path / 'stuck'}:/usr/bin:/bin")
    first = made.packages[0].size

    def interrupt(_: str, done: int, __: int) -> None:
        if done > first:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(made.packages, tell=interrupt)
    assert left(cache) == [f"nano-data.partial/packages/{made.packages[0].file}"]
    with pytest.raises(ProcessLookupError):  # the tool was ended, too
        os.kill(int(stuck.read_text()), 0)

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    told: list[int] = []
    fetch(made.packages, tell=lambda _, done, __: told.append(done))
    assert told[0] == first
    assert left(cache) == WHOLE
    assert calls.read_text().split() == ["tiny-emoji-1.0", "tiny-backgrounds_1:1.0-1"]


@posix
def test_a_kept_package_is_checked(made: packed.Made, cache: Path, calls: Path) -> None:
    kept = cache / "nano-data.partial/packages" / made.packages[0].file
    kept.parent.mkdir(parents=True)
    kept.write_bytes(bytes(made.packages[0].size))
    (cache / "nano-data.partial/tree/emoji").mkdir(parents=True)
    (cache / "nano-data.partial/packages/tool-of-a-killed-process").mkdir()
    fetch(made.packages)
    assert left(cache) == WHOLE
    assert not (cache / "nano-data.partial").exists()


def test_a_missing_tool(made: packed.Made, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match=r"apt-get .* and npm .*tiny-backgrounds.*--from\.$"):
        fetch(made.packages)
    assert left(cache) == []


def test_what_draws_is_missing(made: packed.Made, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is downloaded."""
    drawing = packed.tar({"a.svg": b"<svg/>"}, mode="w:gz")
    table = packed.alone(made, drawing, like=0, part=Part(r"(.+)\.svg", r"all/\1.png", cut_out=50)).packages
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingDependency, match="run `pip install resvg-py`"):
        fetch(table)
    assert left(cache) == []


@posix
@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        ("npm error network request failed, reason: getaddrinfo ENOTFOUND x", "reaches no registry: check the network"),
        ("E: Version '1:1.0-1' for 'tiny' was not found", "The registry of npm has no tiny-emoji 1.0"),
        ("npm error code ENOSPC", "is full"),
        ("npm error nobody knows ftp://user:secret@host/x.", r"failed \(nobody knows \(address\)\): mend that"),
        ("", "failed \\(no reason given\\)"),
    ],
)
def test_what_a_tool_says(
    made: packed.Made, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, sentence: str
) -> None:
    packed.install(tmp_path / "bin", made.folder, script=SAYS.replace("{says}", says))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(VLoRAError, match=sentence):
        fetch(made.packages)
    assert left(cache) == []


@posix
def test_a_version_that_this_debian_lacks(
    made: packed.Made, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = SAYS.replace("{says}", "E: Version '1' for 'tiny-backgrounds' was not found")
    packed.install(tmp_path / "bin", made.folder, script=says)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(VLoRAError, match=r"apt-get has no tiny-backgrounds 1:1\.0-1 here.*Debian 12.*--from\."):
        fetch(made.packages[1:])
    assert left(cache) == []


@posix
def test_pip_without_the_version(made: packed.Made, cache: Path, calls: Path) -> None:
    (made.folder / made.packages[2].file).unlink()
    with pytest.raises(VLoRAError, match=r"The registry of pip has no tiny-digits 1\.0"):
        fetch(made.packages[2:])
    assert left(cache) == []


def test_a_folder_that_lacks_files(made: packed.Made, cache: Path) -> None:
    (made.folder / made.packages[2].file).unlink()
    with pytest.raises(InputError, match=r"has no tiny_digits-1\.0-py3-none-any\.whl"):
        fetch(made.packages, source=made.folder)
    with pytest.raises(InputError, match="is no folder"):
        fetch(made.packages, source=made.folder / "nothing")
    assert left(cache) == []


def test_files_by_the_names_of_archives(made: packed.Made) -> None:
    place = made.folder / made.packages[1].file
    place.rename(made.folder / "tiny-backgrounds_1.0-1_all.deb")
    assert fetch(made.packages, source=made.folder).files == 5


def test_a_full_disk(made: packed.Made, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(made.folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2999))
        with pytest.raises(VLoRAError, match="0 MB are free, 1 MB are needed"):
            fetch(made.packages, source=made.folder)
    assert left(cache) == []

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "unpack", full)
    with pytest.raises(VLoRAError, match=r"cannot take the nano set \(No space left on device\): set VLORA_CACHE"):
        fetch(made.packages, source=made.folder)
    assert left(cache) == []


def test_a_cache_that_cannot_be_written(made: packed.Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VLoRAError, match="set VLORA_CACHE to a folder that can be written"):
        fetch(made.packages, tmp_path / "file" / "cache", source=made.folder)


def test_another_process_is_waited_for(made: packed.Made, cache: Path) -> None:
    cache.mkdir()
    lock = FileLock(cache / "nano-data.lock", thread_local=False)
    lock.acquire()
    waiting = threading.Event()
    said: list[str] = []

    def notify(sentence: str) -> None:
        said.append(sentence)
        waiting.set()

    thread = threading.Thread(target=lambda: fetch(made.packages, source=made.folder, notify=notify))
    thread.start()
    assert waiting.wait(60)
    assert left(cache) == []
    lock.release()
    thread.join(60)
    assert said[0].startswith("Waiting for another process")
    assert left(cache) == WHOLE


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_a_registry_for_real(cache: Path) -> None:
    (labels,) = (one for one in PACKAGES if one.name == "emojibase-data")
    try:
        fetch([labels])
    except VLoRAError as error:
        if "reaches no registry" in str(error):
            pytest.skip("there is no network")
        raise
    assert left(cache) == [f"nano-data/{name}" for name in ("SOURCES.json", "emoji/groups.json", "emoji/labels.json")]
    assert len(json.loads((cache / "nano-data/emoji/labels.json").read_text())) > 1000
