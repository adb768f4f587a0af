"""JSON files of any size: an array of objects, or an object a line. They are read through once, and never kept.

The reading through notes for each row where it begins and ends, its line, its length in characters, and whether its id
was there before. A row is parsed again when it is asked for.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ...errors import DataError
from ..sample import Sample
from .base import Rows
from .index import Columns, hash_of, index_of, repeated
from .json_array import CHUNK, Found, array_items


class JsonRows(Rows):
    """A source that reads a JSON file row by row.

    Args:
        path: an array of objects, or an object a line.
        name: see `Rows`.
        images: where relative paths of images begin; None: in the file's folder.
        augment: see `Rows`.

    Raises:
        DataError: the file is no such thing.
    """

    kind: str
    """Of index: what `measure` does."""

    def __init__(self, path: Path, *, name: str, images: Path | None, augment: bool) -> None:
        super().__init__(name, augment=augment)
        self.path, self.root = path, str(images or path.parent)
        self._index = index_of([path], self.kind, build=lambda: scan(path, self.measure))
        if not len(self._index):
            raise DataError(f"{path} holds no sample: give a JSON array of objects, or an object a line.")

    @abstractmethod
    def measure(self, row: dict[str, Any]) -> int:
        """Characters of a row's conversation; raises what it likes where there is none."""

    @abstractmethod
    def parse(self, row: dict[str, Any], *, id: str, where: str) -> Sample:
        """The sample of a row."""

    def __len__(self) -> int:
        return len(self._index)

    @property
    def repeats(self) -> int:
        """See `Rows`."""
        return int(self._index["again"].sum())

    def length(self, index: int) -> int:
        """See `Rows`."""
        return int(self._index["characters"][index])

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        index_ = self._index
        start, end = int(index_["start"][index]), int(index_["end"][index])
        line = int(index_["line"][index])
        where = f"{self.path} line {line}" + (f" item {index + 1}" if line != index + 1 else "")
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                row: Any = json.loads(file.read(end - start).decode("utf-8"))
        except OSError as error:
            raise DataError(f"{where} cannot be read ({error.strerror}): see whether the disk is there.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8: save the file in that encoding.") from error
        except ValueError as error:
            raise DataError(f"{where} is not JSON ({_reason(error)}): correct it there.") from error
        except RecursionError as error:
            raise DataError(f"{where} is nested too deeply: give an object as docs/data.md shows.") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} holds {type(row).__name__}, not an object: see docs/data.md.")
        fields = cast("dict[str, Any]", row)
        number = index + 1
        own = fields.get("id")
        id = str(number) if own is None else str(own)
        if index_["again"][index]:
            id = f"{id}#{number}"
        return self.parse(fields, id=id, where=f"{where} (id {id[:60]!r})" if own is not None else where)


def scan(path: Path, measure: Callable[[dict[str, Any]], int]) -> Columns:
    """Read a file through.

    Raises:
        DataError: it cannot be read, or is no JSON.
    """
    starts, ends, lines, hashes, characters = array("Q"), array("Q"), array("Q"), array("Q"), array("I")
    for number, found in enumerate(_rows(path), 1):
        id, count = str(number), 0
        if isinstance(found.row, dict):
            row = cast("dict[str, Any]", found.row)
            own = row.get("id")
            id = str(number) if own is None else _utf8(str(own))
            try:
                count = measure(row)
            except (TypeError, KeyError, AttributeError, ValueError):  # told when the row is asked for
                count = 0
        starts.append(found.start)
        ends.append(found.end)
        lines.append(found.line)
        hashes.append(hash_of(id))
        characters.append(min(count, 2**32 - 1))
    return {
        "start": np.asarray(starts, dtype=np.uint64),
        "end": np.asarray(ends, dtype=np.uint64),
        "line": np.asarray(lines, dtype=np.uint64),
        "characters": np.asarray(characters, dtype=np.uint32),
        "again": repeated(np.asarray(hashes, dtype=np.uint64)),
    }


def _rows(path: Path) -> Iterator[Found]:
    try:
        with path.open("rb") as file:
            head = file.read(4)
            check_encoding(path, head)
            begin = 3 if head.startswith(b"\xef\xbb\xbf") else 0
            file.seek(begin)
            first = file.read(CHUNK).lstrip()[:1]
            file.seek(begin)
            yield from array_items(path, file, begin) if first == b"[" else _lines(path, file, begin)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a JSON file.") from error


def _lines(path: Path, file: BinaryIO, begin: int) -> Iterator[Found]:
    start = begin
    for number, line in enumerate(file, 1):
        end = start + len(line)
        if line.strip():
            row = None
            try:
                row = json.loads(line.decode("latin-1"))
            except (ValueError, RecursionError) as error:
                if start == begin:  # not one bad line among many: another kind of file
                    raise DataError(
                        f"{path} line {number} is not JSON: give a JSON array of objects, or an object a line."
                    ) from error
            yield Found(start, end, number, row)
        start = end


def check_encoding(path: Path, head: bytes) -> None:
    if not head:
        raise DataError(f"{path} is empty: give a JSON array of objects, or an object a line.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is written in UTF-16: save it as UTF-8.")
    if head.startswith((b"\x1f\x8b", b"BZh", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")):
        raise DataError(f"{path} is compressed: unpack it first, so that its rows can be read in any order.")
    if head == b"PAR1":
        raise DataError(f"{path} is a Parquet file, not JSON: name it .parquet.")


def _utf8(text: str) -> str:
    """Text of a file that was read as Latin-1, unless it came from an escape."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _reason(error: ValueError) -> str:
    return str(error).splitlines()[0][:100]
