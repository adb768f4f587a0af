"""What a user names is found in a fixed order, from folders, tars and lists, and nothing is passed over silently."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from tests.album.conftest import draw
from vlora.album.sources import Found, Search, check
from vlora.errors import ImageError, InputError


def paths(*sources: Path | str) -> list[str]:
    return [found.path for found in Search(sources)]


def pack(tar: Path, *files: Path, mode: str = "w") -> Path:
    with tarfile.open(tar, mode) as archive:  # type: ignore[call-overload]
        for file in files:
            archive.add(file, arcname=f"inside/{file.name}")
    return tar


def test_folder(photos: Path) -> None:
    expected = sorted(str(path) for path in photos.rglob("*.*"))
    assert sorted(paths(photos)) == expected
    assert paths(photos) == paths(photos)
    assert all(os.path.isabs(path) for path in paths(os.path.relpath(photos)))


def test_what_is_no_image_is_counted(photos: Path) -> None:
    (photos / "notes.txt").write_text("no")
    (photos / "raw.HEIC").write_text("no")
    draw(photos / "upper.PNG", 1)
    search = Search([photos])
    assert str(photos / "upper.PNG") in [found.path for found in search]
    assert dict(search.passed_over) == {".txt": 1, ".heic": 1}


def test_file_of_any_ending(tmp_path: Path) -> None:
    file = draw(tmp_path / "a.png", 1).rename(tmp_path / "picture")
    assert paths(file) == [str(file)]


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.txz", "w:xz")])
def test_tar(photos: Path, tmp_path: Path, name: str, mode: str) -> None:
    files = sorted(photos.glob("*.png"))
    tar = pack(tmp_path / name, *files, mode=mode)
    found = list(Search([tar]))
    assert [one.path for one in found] == [f"{tar}::inside/{file.name}" for file in files]
    assert [one.read() for one in found] == [file.read_bytes() for file in files]
    assert {one.archive for one in found} == {str(tar)}
    assert {one.data is None for one in found} == {mode == "w"}


def test_links_in_a_tar_are_told(tmp_path: Path) -> None:
    file = draw(tmp_path / "a.png", 1)
    (tmp_path / "link.png").symlink_to(file)
    found = list(Search([pack(tmp_path / "a.tar", file, tmp_path / "link.png")]))
    assert [one.reason is None for one in found] == [True, False]


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_cut_off_tar(photos: Path, tmp_path: Path, name: str, mode: str) -> None:
    tar = pack(tmp_path / name, *sorted(photos.glob("*.png")), mode=mode)
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    reasons = list[str]()
    for found in Search([tar]):
        try:
            whole = found.reason is None and len(found.read()) == found.bytes
        except ImageError:
            whole = False
        if not whole:
            reasons.append(found.reason or "short")
    assert reasons


def test_no_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"nonsense" * 200)
    (found,) = Search([tmp_path / "a.tar"])
    assert "cut off or not a tar" in str(found.reason)


def test_list(photos: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"photos/inner\n\n{photos / 'n3.png'}\nphotos/none.png\n")
    found = list(Search([listing]))
    assert [Path(one.path).name for one in found] == ["n0.png", "twin.bmp", "n3.png", "none.png"]
    assert [one.reason is None for one in found] == [True, True, True, False]


def test_circle_of_links_ends(photos: Path) -> None:
    before = paths(photos)
    (photos / "inner" / "round").symlink_to(photos)
    assert paths(photos) == before


def test_strange_files_are_told(photos: Path) -> None:
    os.mkfifo(photos / "pipe.png")
    (photos / "broken.png").symlink_to(photos / "nothing.png")
    Path(os.fsdecode(os.fsencode(photos) + b"/\xff.png")).write_bytes(b"x")
    reasons = [found.reason for found in Search([photos]) if found.reason is not None]
    assert len(reasons) == 3
    assert any("pipe" in reason for reason in reasons)
    assert any("does not exist" in reason or "no such file" in reason for reason in reasons)
    assert any("not UTF-8" in reason for reason in reasons)


def test_reading_what_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        Found(str(tmp_path / "gone.png")).read()


@pytest.mark.parametrize("sources", [[], ["no/such/folder"]])
def test_nothing_there(sources: list[str]) -> None:
    with pytest.raises(InputError, match=r"nothing to encode|does not exist"):
        check(sources)
