"""Members become files where they should, and nowhere else."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.data.made import png
from tests.data.sets.nano import packed
from vlora.data.sets.nano.packages import Part
from vlora.data.sets.nano.unpack import unpack
from vlora.errors import DataError

EVERYTHING = Part(r"(.+)", r"all/\1")


@pytest.fixture
def made(tmp_path: Path) -> packed.Made:
    return packed.make(tmp_path / "registry")


def test_each_kind_of_package(made: packed.Made, tmp_path: Path) -> None:
    counts = [unpack(one, made.folder / one.file, into=tmp_path / "set") for one in made.packages]
    assert counts == [2, 2, 1]
    assert (tmp_path / "set/emoji/a.png").read_bytes() == png(1)
    assert (tmp_path / "set/digits/digits.csv.gz").read_bytes() == b"0,1,2"
    with Image.open(tmp_path / "set/backgrounds/wide.jpg") as image:
        assert image.format == "JPEG"


@pytest.mark.parametrize(("size", "scaled"), [((64, 32), (16, 8)), ((30, 41), (8, 11)), ((9, 5), (9, 5))])
def test_the_shorter_side(made: packed.Made, tmp_path: Path, size: tuple[int, int], scaled: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "wide.png")
    content = packed.deb({"./usr/share/wide.png": (tmp_path / "wide.png").read_bytes()})
    (one,) = packed.alone(made, content, like=1).packages
    unpack(one, made.folder / one.file, into=tmp_path / "set")
    with Image.open(tmp_path / "set/backgrounds/wide.jpg") as image:
        assert (image.format, image.size) == ("JPEG", scaled)


def test_cut_outs(made: packed.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members: dict[str, bytes] = {}
    for name, side in {"small": 20, "large": 100, "huge": 150}.items():
        image = Image.new("RGBA", (side, side))
        image.paste((250, 0, 0, 255), (0, side // 2, side, side))  # the upper half is empty
        stream = io.BytesIO()
        image.save(stream, "PNG")
        members[f"./{name}.png"] = stream.getvalue()
    members["./link.png"], members["./linked-huge.png"] = "large.png", "huge.png"  # type: ignore[assignment]
    part = Part(r"(.+)", r"all/\1", cut_out=50)
    (one,) = packed.alone(made, packed.deb(members), like=1, part=part).packages
    monkeypatch.setattr("vlora.data.sets.nano.unpack.MAX_PIXELS", 10_000)
    assert unpack(one, made.folder / one.file, into=tmp_path / "set") == 3
    sizes: dict[str, tuple[int, int]] = {}
    for place in (tmp_path / "set/all").iterdir():
        with Image.open(place) as image:
            assert image.mode == "RGBA"
            sizes[place.stem] = image.size
    assert sizes == {"small": (20, 10), "large": (50, 25), "link": (50, 25)}


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40">%s</svg>'


def test_a_drawing_becomes_a_cut_out(made: packed.Made, tmp_path: Path) -> None:
    half = SVG % b'<rect y="20" width="40" height="20" fill="#f00"/>'
    content = packed.tar({"half.svg": half}, mode="w:gz")
    (one,) = packed.alone(made, content, like=0, part=Part(r"(.+)\.svg", r"all/\1.png", cut_out=50)).packages
    unpack(one, made.folder / one.file, into=tmp_path / "set")
    with Image.open(tmp_path / "set/all/half.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (50, 25))
        assert image.getpixel((25, 12)) == (255, 0, 0, 255)


def test_a_drawing_that_is_none(made: packed.Made, tmp_path: Path) -> None:
    content = packed.tar({"a.svg": b"<svg> without an end"}, mode="w:gz")
    (one,) = packed.alone(made, content, like=0, part=Part(r"(.+)\.svg", r"all/\1.png", cut_out=50)).packages
    with pytest.raises(DataError, match=r"cannot be unpacked.*a drawing"):
        unpack(one, made.folder / one.file, into=tmp_path / "set")


def test_a_cut_out_that_is_no_picture(made: packed.Made, tmp_path: Path) -> None:
    content = packed.deb({"./a.png": b"no picture at all, only words"})
    (one,) = packed.alone(made, content, like=1, part=Part(r"(.+)", r"all/\1", cut_out=50)).packages
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(one, made.folder / one.file, into=tmp_path / "set")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "a\\..\\evil", "C:evil"])
def test_no_member_leaves_the_folder(made: packed.Made, tmp_path: Path, name: str) -> None:
    content = packed.tar({name: b"evil"}, mode="w:gz")
    (one,) = packed.alone(made, content, like=0, part=EVERYTHING).packages
    with pytest.raises(DataError, match="out of"):
        unpack(one, made.folder / one.file, into=tmp_path / "set")
    assert not list(tmp_path.rglob("*evil"))


def test_no_link_is_made_or_followed(made: packed.Made, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    content = packed.tar({"door": str(outside), "door/evil": b"evil", "good": b"good"}, mode="w:gz")
    (one,) = packed.alone(made, content, like=0, part=EVERYTHING).packages
    assert unpack(one, made.folder / one.file, into=tmp_path / "set") == 2
    assert not list(outside.iterdir())
    assert not [path for path in (tmp_path / "set").rglob("*") if path.is_symlink()]


def test_a_link_becomes_what_it_leads_to(made: packed.Made, tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {
        "./usr/share/before.png": "topic/a.png",
        "./usr/share/topic/a.png": b"a",
        "./usr/share/other/b.dat": b"b",
        "./usr/share/aside.png": "other/b.dat",  # a member that is not taken itself
        "./usr/share/topic/up.png": "../other/b.dat",
        "./usr/share/rooted.png": "/usr/share/topic/a.png",
        "./usr/share/chain.png": "topic/up.png",
        "./usr/share/nowhere.png": "missing.png",
        "./usr/share/circle.png": "circle.png",
        "./usr/share/out.png": "../../../../../../../../etc/passwd",
    }
    part = Part(r"usr/share/(.+\.png)", r"set/\1")
    (one,) = packed.alone(made, packed.deb(members), like=1, part=part).packages
    assert unpack(one, made.folder / one.file, into=tmp_path / "x") == 6
    found = {path.relative_to(tmp_path / "x/set").as_posix(): path.read_bytes() for path in tmp_path.glob("x/**/*.png")}
    assert found == {
        "before.png": b"a",
        "topic/a.png": b"a",
        "aside.png": b"b",
        "topic/up.png": b"b",
        "rooted.png": b"a",
        "chain.png": b"b",
    }
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


def test_a_hard_link_becomes_what_it_leads_to(made: packed.Made, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        first, second = tarfile.TarInfo("./a"), tarfile.TarInfo("./b")
        first.size, second.type, second.linkname = 1, tarfile.LNKTYPE, "./a"
        archive.addfile(first, io.BytesIO(b"x"))
        archive.addfile(second)
    (one,) = packed.alone(made, stream.getvalue(), like=0, part=EVERYTHING).packages
    assert unpack(one, made.folder / one.file, into=tmp_path / "set") == 2
    assert (tmp_path / "set/all/b").read_bytes() == b"x"


@pytest.mark.parametrize("like", [0, 1, 2])
@pytest.mark.parametrize("content", [b"", b"!<arch>\n", b"!<arch>\n" + b"x" * 60, b"nothing of that kind" * 50])
def test_what_is_no_archive(made: packed.Made, tmp_path: Path, like: int, content: bytes) -> None:
    (one,) = packed.alone(made, content, like=like).packages
    with pytest.raises(DataError, match=r"fetch nano` again\.$"):
        unpack(one, made.folder / one.file, into=tmp_path / "set")


@pytest.mark.parametrize("like", [0, 1])
def test_an_archive_that_is_cut(made: packed.Made, tmp_path: Path, like: int) -> None:
    content = (made.folder / made.packages[like].file).read_bytes()
    (one,) = packed.alone(made, content[: len(content) // 2], like=like).packages
    with pytest.raises(DataError, match="fetch nano` again"):
        unpack(one, made.folder / one.file, into=tmp_path / "set")


def test_a_part_that_nothing_matches(made: packed.Made, tmp_path: Path) -> None:
    one = made.packages[0]
    (other,) = packed.alone(made, (made.folder / one.file).read_bytes(), like=0, part=Part("nothing", "x")).packages
    with pytest.raises(DataError, match="no member that matches nothing"):
        unpack(other, made.folder / one.file, into=tmp_path / "set")


def test_two_members_of_one_place(made: packed.Made, tmp_path: Path) -> None:
    content = packed.tar({"a/x": b"1", "b/x": b"2"}, mode="w:gz")
    (one,) = packed.alone(made, content, like=0, part=Part("./(.)", r"\1")).packages
    with pytest.raises(DataError, match="twice"):
        unpack(one, made.folder / one.file, into=tmp_path / "set")
