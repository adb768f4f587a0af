"""Files of figures: refused in one sentence before they are drawn, whole when they are written."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from vlora.errors import InputError, MissingDependency
from vlora.figures import check_file, check_folder, write


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("figure.pdf", r"does not end in \.png"),
        ("figure", r"does not end in \.png"),
        ("no/figure.png", "which does not exist"),
        ("dir.png", "is a folder"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(InputError, match=problem):
        check_file(tmp_path / name)


def test_right_files_are_left_alone(tmp_path: Path) -> None:
    check_file(tmp_path / "new.PNG")
    (tmp_path / "old.png").write_text("an older one")
    check_file(tmp_path / "old.png")
    assert os.listdir(tmp_path) == ["old.png"]
    assert (tmp_path / "old.png").read_text() == "an older one"


def test_a_file_in_a_folder_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match="cannot be written: give a file in a folder of yours"):
        check_file(tmp_path / "figure.png")


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is a file: name a folder"):
            check_folder(folder)
    check_folder(tmp_path / "new" / "figures")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_someone_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="may not be written to"):
        check_folder(tmp_path / "figures")


@pytest.mark.parametrize("check", [lambda folder: check_file(folder / "figure.png"), check_folder])
def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r'pip install "vlora-mllm\[plot\]"'):
        check(tmp_path)


def test_what_is_written_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("an older one")
    write({tmp_path / "a.png": Figure(figsize=(3, 2)), tmp_path / "b.png": Figure(figsize=(1, 1))}, dpi=50)
    sizes = []
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            image.load()
            sizes.append(image.size)
    assert sizes == [(150, 100), (50, 50)]
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "figure.png"
    path.write_text("an older one")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\): give another"):
        write({path: Figure()}, dpi=50)
    assert os.listdir(tmp_path) == ["figure.png"]
    assert path.read_text() == "an older one"
