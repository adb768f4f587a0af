"""What the index says of one file, and how names and patterns find it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import AlbumError, InputError, NotInAlbum
from .index import Index
from .sources import INSIDE

HASH = "hash:"
SHOWN = 5
PAGE = 1000
COLUMNS = "path, archive, image, bytes, time, file"


class Entry(NamedTuple):
    """A file of an album.

    Args:
        path: absolute; of a member of a tar `/photos.tar::inside/dog.jpg`.
        archive: the tar, or None.
        image: SHA-256 of the picture; files that show the same picture share it.
        bytes: of the file.
        time: when it was last changed, in nanoseconds.
        file: SHA-256 of the file.
    """

    path: str
    archive: str | None
    image: str
    bytes: int
    time: int
    file: str

    @property
    def seal(self) -> str:
        """A checksum of this row: an index that was altered is found out where it is read."""
        return hashlib.sha256(repr(tuple(self)).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return last_part(self.path)


def last_part(path: str) -> str:
    """`dog.jpg` of `/photos/dog.jpg` and of `photos.tar::dog.jpg`."""
    return path.rsplit("/", 1)[-1].rsplit(INSIDE, 1)[-1]


def sealed(index: Index, rows: Sequence[tuple[Any, ...]]) -> list[Entry]:
    """Entries of rows of `COLUMNS` and their seal.

    Raises:
        AlbumError: a row that was altered.
    """
    entries = [Entry(*row[:-1]) for row in rows]
    for entry, row in zip(entries, rows, strict=True):
        if entry.seal != row[-1]:
            raise AlbumError(
                f"The index of the album {str(index.folder)!r} was altered, its row of {entry.path!r} does not fit its "
                "seal: `vlora album prune --damaged` takes it out."
            )
    return entries


def every(index: Index, patterns: Sequence[str] | None = None) -> Iterator[Entry]:
    """Files in the order of their paths, those that fit one of the patterns, or all.

    Args:
        index: of the album.
        patterns: globs on the end of the path (`dog*.jpg`, `photos/*`), or `hash:` and the first digits of a picture's
            hash; None for all files.

    Raises:
        InputError: a pattern that is none.
    """
    condition, arguments = _condition(patterns)
    last = ""
    while True:  # in pages: see `Index.rows`
        page = index.rows(
            f"SELECT {COLUMNS}, seal FROM files WHERE path > ? AND ({condition}) ORDER BY path LIMIT {PAGE}",
            [last, *arguments],
        )
        yield from sealed(index, page)
        if len(page) < PAGE:
            return
        last = page[-1][0]


def _condition(patterns: Sequence[str] | None) -> tuple[str, list[str]]:
    if patterns is None:
        return "1", []
    conditions, arguments = ["0"], list[str]()
    for pattern in patterns:
        if pattern.startswith(HASH):
            conditions.append("image GLOB ?")
            arguments.append(f"{_digits(pattern)}*")
        elif not pattern:
            raise InputError("A pattern is empty: give a glob such as 'dog*.jpg', or hash: and the first digits.")
        else:
            glob = pattern.removeprefix("./").replace("[!", "[^")
            conditions.append(f"path GLOB ? OR path GLOB '*/' || ? OR path GLOB '*{INSIDE}' || ?")
            arguments += [glob] * 3
    return " OR ".join(conditions), arguments


def _digits(pattern: str) -> str:
    digits = pattern.removeprefix(HASH).lower()
    if not 4 <= len(digits) <= 64 or set(digits) - set("0123456789abcdef"):
        raise InputError(f"{pattern!r} names no picture: give {HASH} and 4 to 64 digits of 0-9 and a-f.")
    return digits


def named(index: Index, name: str | Path) -> list[Entry]:
    """Files of a name: the one with this path, or all whose path ends with it, part by part.

    Raises:
        InputError: `hash:` and something else than digits.
    """
    text = os.fspath(name)
    if text.startswith(HASH):
        return list(every(index, [text]))
    query = f"SELECT {COLUMNS}, seal FROM files WHERE"
    exact = sealed(index, index.rows(f"{query} path IN (?, ?)", [text, os.path.abspath(text)]))
    if exact:
        return exact
    tail = os.path.normpath(text)
    found = sealed(index, index.rows(f"{query} name = ? ORDER BY path", [last_part(tail)]))
    return [entry for entry in found if entry.path.endswith((f"/{tail}", f"{INSIDE}{tail}"))]


def the_one(index: Index, name: str | Path) -> Entry:
    """The file of a name; of several that show the same picture, the first.

    Raises:
        NotInAlbum: there is none, or files of this name show different pictures.
    """
    found = named(index, name)
    if not found:
        raise NotInAlbum(
            f"There is no {os.fspath(name)!r} in the album {str(index.folder)!r}: give the end of a path, or {HASH} "
            "and the first digits of a picture's hash; `vlora album info --list` shows all."
        )
    if len({entry.image for entry in found}) > 1:
        paths = ", ".join(entry.path for entry in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise NotInAlbum(
            f"{os.fspath(name)!r} is the name of {len(found)} files with different pictures ({paths}{more}): "
            "give more of the path."
        )
    return found[0]
