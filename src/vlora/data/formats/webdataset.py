"""Tar files as img2dataset and WebDataset write them: 000017.jpg, 000017.txt, 000017.json beside each other.

    key          up to the first dot of a name; members of one key follow each other
    image        .jpg .jpeg .png .webp ...
    caption      .txt, or `caption` of the .json

Read in any order: the headers of each tar are read through once and their places kept in the user's cache folder.
"""

from __future__ import annotations

import json
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...errors import DataError
from ..sample import MARKER, Sample
from .captions import SUFFIXES, USUAL, Captioned
from .index import Columns, Index, hash_of, index_of, repeated


class TarSource(Captioned):
    """See above; a block for each tar.

    Args:
        files: the tars.
        name: see `Rows`.
        prompts: see `Captioned`.
        columns: the key of `caption` in the JSON.
        augment: see `Rows`.

    Raises:
        DataError: a tar that is compressed, damaged or cut off, or there is nothing in any.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        name: str,
        prompts: Sequence[str] = (),
        columns: dict[str, str] | None = None,
        augment: bool = False,
    ) -> None:
        super().__init__(name, prompts=prompts, augment=augment)
        self.files = list(files)
        captions = (columns or {}).get("caption")
        self.captions = (captions,) if captions else USUAL["caption"]
        self._indexes: list[Index] = [
            index_of([file], f"tar {self.captions}", build=lambda file=file: _scan(file, self.captions))
            for file in files
        ]
        self._ends = list(accumulate(len(one) for one in self._indexes))
        if not self._ends or not self._ends[-1]:
            raise DataError(f"{files[0] if files else 'The pattern'} holds no image with a text: see docs/data.md.")
        self._again = repeated(np.concatenate([one["hash"] for one in self._indexes]))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def blocks(self) -> Sequence[int]:
        """See `Source`."""
        return [len(one) for one in self._indexes if len(one)]

    @property
    def repeats(self) -> int:
        """See `Rows`."""
        return int(self._again.sum())

    def length(self, index: int) -> int:
        """See `Rows`."""
        _, found, row = self._place(index)
        return int(found["characters"][row]) + len(MARKER) + len(self.prompt_of(int(found["hash"][row])))

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        file, found, row = self._place(index)
        key = bytes(found["key"][row]).decode("utf-8", "surrogateescape")
        where = f"{file} member {key}"
        id = f"{key}#{index + 1}" if self._again[index] else key
        parts = {
            name: _Part(int(found[name][row]), int(found[f"{name}_size"][row])) for name in ("image", "txt", "json")
        }
        if not parts["image"].start:
            raise DataError(f"{where} has no image: give {', '.join(SUFFIXES)} beside its text.")
        try:
            with file.open("rb") as opened:
                image, txt, fields = (parts[name].read(opened) for name in ("image", "txt", "json"))
            caption = txt.decode("utf-8") if parts["txt"].start else _caption(fields, self.captions)
        except OSError as error:
            raise DataError(f"{where} cannot be read ({error.strerror}): see whether the disk is there.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{where} has a text that is not UTF-8: write the tar anew.") from error
        if caption is None:
            raise DataError(
                f"{where} has nothing to learn from: give a .txt beside its image, or a .json with {self.captions[0]}."
            )
        return self.captioned(id, image, caption.strip(), hashed=int(found["hash"][row]), where=where)

    def _place(self, index: int) -> tuple[Path, Index, int]:
        tar = bisect_right(self._ends, index)
        return self.files[tar], self._indexes[tar], index - (self._ends[tar - 1] if tar else 0)


class _Part:
    """Where a member's content lies; one that starts at 0 is not there, since a header comes first."""

    def __init__(self, start: int, size: int) -> None:
        self.start, self.size = start, size

    def read(self, file: Any) -> bytes:
        if not self.start:
            return b""
        file.seek(self.start)
        return file.read(self.size)


def _scan(path: Path, captions: Sequence[str]) -> Columns:
    """Read the headers of a tar through."""
    rows: dict[str, dict[str, Any]] = {}
    closed: set[str] = set()
    last = ""
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                cast("Any", tar).members = []  # else every header is kept
                name = member.name.removeprefix("./")
                folder, _, base = name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if not member.isfile() or not stem or not dot:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if key != last:
                    closed.add(last)
                    last = key
                # A key that comes back later is another sample of the same id.
                unique = f"{key}\0{len(closed)}" if key in closed else key
                _note(rows.setdefault(unique, {"key": key}), f".{suffix.lower()}", member, tar, captions)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} is not a whole, uncompressed tar file ({error}): get it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a tar file.") from error
    size = path.stat().st_size
    kept = [row for row in rows.values() if "image" in row or "txt" in row]
    for row in kept:
        if any(row.get(name, 0) + row.get(f"{name}_size", 0) > size for name in ("image", "txt", "json")):
            raise DataError(f"{path} ends within its member {row['key']}: it was cut off, get it again.")
    numbers: dict[str, Any] = {
        name: np.array([row.get(name, 0) for row in kept], dtype=np.uint64)
        for name in ("image", "image_size", "txt", "txt_size", "json", "json_size")
    }
    return numbers | {
        "key": np.array([row["key"].encode("utf-8", "surrogateescape") for row in kept], dtype=np.bytes_),
        "hash": np.array([hash_of(row["key"]) for row in kept], dtype=np.uint64),
        "characters": np.array([row.get("characters", 0) for row in kept], dtype=np.uint32),
    }


def _note(
    row: dict[str, Any], suffix: str, member: tarfile.TarInfo, tar: tarfile.TarFile, captions: Sequence[str]
) -> None:
    part = "image" if suffix in SUFFIXES else suffix[1:] if suffix in (".txt", ".json") else None
    if part is None:
        return
    row[part], row[f"{part}_size"] = member.offset_data, member.size
    if part == "txt":
        row["characters"] = member.size
    elif part == "json" and "txt" not in row:
        opened = tar.extractfile(member)
        row["characters"] = len(_caption(opened.read() if opened else b"", captions) or "")


def _caption(data: bytes, names: Sequence[str]) -> str | None:
    try:
        fields: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    texts = cast("dict[str, Any]", fields)
    return next((texts[name] for name in names if isinstance(texts.get(name), str)), None)
