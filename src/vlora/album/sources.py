"""What a user names -> the images in it: folders, tars, lists, single files.

    photos/            every image below it, by its ending
    photos.tar(.gz)    likewise, without unpacking; a member is called photos.tar::inside/dog.jpg
    photos.txt         a path a line, seen from the folder of the list: files, folders or tars
    dog.jpg            that file, whatever its ending

A found image is a place, not pixels: a few numbers, so that a million of them can be walked through, in the same
order each time.
"""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..data.images import MAX_BYTES
from ..errors import ImageError, InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LISTS = (".txt", ".lst", ".list")
INSIDE = "::"  # between a tar and its member


class Found(NamedTuple):
    """Where an image is.

    Args:
        path: its name in the album: the path of the file, or of the tar and its member.
        bytes: of the file or member.
        time: when the file, or the tar, was last changed, in nanoseconds.
        archive: the tar it lies in.
        offset: where in the tar; None: not to be had by seeking, and `data` holds it.
        data: the bytes themselves, of a member of a compressed tar.
        reason: why it cannot be read, if that is known already.
    """

    path: str
    bytes: int = 0
    time: int = 0
    archive: str | None = None
    offset: int | None = None
    data: bytes | None = None
    reason: str | None = None

    def read(self) -> bytes:
        """The bytes of the image file.

        Raises:
            ImageError: they cannot be read.
        """
        if self.data is not None:
            return self.data
        try:
            with open(self.archive or self.path, "rb") as file:
                file.seek(self.offset or 0)
                return file.read(self.bytes if self.archive else MAX_BYTES + 1)
        except OSError as error:
            raise ImageError(f"{self.path} cannot be read ({_why(error)}): give a readable file.") from None


def check(sources: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse, before any work is done, what is not there.

    Raises:
        InputError: nothing named, or a name of nothing.
    """
    if not sources:
        raise InputError("There is nothing to encode: name folders, images, tars, or lists of paths.")
    for source in (os.fspath(source) for source in sources):
        if not os.path.exists(source):
            raise InputError(f"{source!r} does not exist: name folders, images, tars, or lists of paths.")


class Search:
    """All images in what was named, in a fixed order; what cannot be read is among them, with the reason.

    Args:
        sources: folders, files, tars, lists.
        contents: whether members of compressed tars come with their bytes; without them they are only good to count.
    """

    def __init__(self, sources: Sequence[str | os.PathLike[str]], *, contents: bool = True) -> None:
        self.sources, self.contents = [os.fspath(source) for source in sources], contents
        self.passed_over: Counter[str] = Counter()
        """Files in folders and tars that are no images by their ending: how many of each ending."""

    def __iter__(self) -> Iterator[Found]:
        self.passed_over.clear()
        for source in self.sources:
            path = os.path.abspath(source)
            if source.lower().endswith(LISTS) and not os.path.isdir(path):
                yield from self._in_list(path)
            else:
                yield from self._in_path(path)

    def _in_path(self, path: str) -> Iterator[Found]:
        if os.path.isdir(path):
            yield from self._in_folder(path)
        elif path.lower().endswith(TARS):
            yield from self._in_tar(path)
        else:
            yield _file(path)

    def _in_list(self, path: str) -> Iterator[Found]:
        folder = os.path.dirname(path)
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                for line in file:
                    if name := line.strip("\r\n"):
                        yield from self._in_path(os.path.normpath(os.path.join(folder, name)))
        except OSError as error:
            yield Found(path, reason=f"{path} cannot be read ({_why(error)}): give a readable list.")

    def _in_folder(self, folder: str) -> Iterator[Found]:
        """Depth first and sorted; links to folders are not followed, so that no circle is walked."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            yield Found(_shown(folder), reason=f"{_shown(folder)} cannot be listed ({_why(error)}).")
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._in_folder(entry.path)
            elif self._is_image(entry.name):
                yield _file(entry.path)

    def _in_tar(self, path: str) -> Iterator[Found]:
        try:
            time = os.stat(path).st_mtime_ns
            # A compressed tar is read from front to back: seeking would decompress it again for every image.
            plain = path.lower().endswith(".tar")
            with tarfile.open(path, "r:" if plain else "r|*") as tar:
                for member in tar:
                    if not member.isdir() and self._is_image(member.name):
                        yield self._member(tar, member, Found(f"{path}{INSIDE}{member.name}", member.size, time, path))
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if plain and not _ends(path, tar.offset):
                    raise tarfile.ReadError("it has no end")
        except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            yield Found(_shown(path), reason=f"{_shown(path)} is cut off or not a tar ({text}): get it again.")

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo, found: Found) -> Found:
        if (reason := _unwritable(found.path)) is not None:
            return found._replace(path=_shown(found.path), reason=reason)
        if not member.isfile() or member.issparse():
            return found._replace(reason=f"{found.path} is a link or a hole in its tar: pack the file itself.")
        if member.size > MAX_BYTES:
            return found._replace(reason=f"{found.path} has more than the {MAX_BYTES >> 20} MiB allowed.")
        if str(found.archive).lower().endswith(".tar"):
            return found._replace(offset=member.offset_data)
        file = tar.extractfile(member) if self.contents else None
        return found._replace(data=file.read() if file else b"")

    def _is_image(self, name: str) -> bool:
        if name.lower().endswith(ENDINGS):
            return True
        self.passed_over[os.path.splitext(name)[1].lower()] += 1
        return False


def _ends(path: str, offset: int) -> bool:
    """Whether a tar has its end mark, a block of zeros, after the last member; tarfile takes any end for one."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _file(path: str) -> Found:
    if (reason := _unwritable(path)) is not None:
        return Found(_shown(path), reason=reason)
    try:
        status = os.stat(path)
    except OSError as error:
        return Found(path, reason=f"{path} cannot be read ({_why(error)}): give a readable file.")
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device may block, or never end
        return Found(path, reason=f"{path} is a pipe or a device: give a regular file.")
    return Found(path, status.st_size, status.st_mtime_ns)


def _why(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _unwritable(path: str) -> str | None:
    """Why a name cannot be kept in an album, if it cannot."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return f"{_shown(path)} has a name that is not UTF-8: rename it."
    return None


def _shown(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
