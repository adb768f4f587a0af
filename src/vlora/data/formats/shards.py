"""Shards: a folder of Arrow files that hold samples whole, for data that are too many for one file each.

    data-00000.arrow   rows of id, images, conversations, characters
    index.json         the shards, with their rows, sizes and hashes
    state.json, dataset_info.json   make it a data set that `datasets.load_from_disk` opens
    skipped.jsonl      what the conversion left out, and why

A shard is mapped into memory when the first of its rows is read, and nothing is kept for each sample, so that opening
takes a moment whatever the size. `vlora data convert` writes them.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...errors import DataError
from ..sample import Message, Sample
from .base import Rows
from .optional import needed

INDEX = "index.json"
VERSION = 1
OPEN = 64
"""Shards that a process keeps mapped."""


class ShardSource(Rows):
    """See above; a block for each shard.

    Args:
        folder: that `vlora data convert` has written.
        name: see `Rows`.
        augment: see `Rows`.

    Raises:
        DataError: the folder is no such thing, is not finished, or lacks a shard.
        MissingDependency: pyarrow is not installed.
    """

    def __init__(self, folder: Path, *, name: str, augment: bool = False) -> None:
        super().__init__(name, augment=augment)
        needed("pyarrow", "Shards")
        self.folder = folder
        shards = read_index(folder)["shards"]
        self._files = [str(one["file"]) for one in shards]
        self._rows = [int(one["rows"]) for one in shards]
        self._ends = list(accumulate(self._rows))
        for one in shards:
            path = folder / one["file"]
            if not path.is_file() or path.stat().st_size != one["bytes"]:
                found = "another size" if path.is_file() else "not there"
                raise DataError(f"The shard {path} is {found}: get it again, or run `vlora data convert` again.")
        self._open: OrderedDict[int, _Shard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def blocks(self) -> Sequence[int]:
        """See `Source`."""
        return self._rows

    def length(self, index: int) -> int:
        """See `Rows`."""
        shard, row = self._place(index)
        return int(shard.characters[row])

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        shard, row = self._place(index)
        return shard.sample(row)

    def _place(self, index: int) -> tuple[_Shard, int]:
        number = bisect_right(self._ends, index)
        if number not in self._open:
            self._open[number] = _Shard(self.folder / self._files[number], self._rows[number])
            while len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number], index - (self._ends[number - 1] if number else 0)


class _Shard:
    """A mapped file."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path = path
        self.batches = read_batches(path)
        self._ends = list(accumulate(batch.num_rows for batch in self.batches))
        if (self._ends[-1] if self._ends else 0) != rows:
            raise DataError(f"The shard {path} has other rows than its index: get it again, or convert again.")
        self.characters = np.concatenate([batch.column("characters").to_numpy() for batch in self.batches])

    def sample(self, row: int) -> Sample:
        number = bisect_right(self._ends, row)
        batch, at = self.batches[number], row - (self._ends[number - 1] if number else 0)
        (found,) = batch.slice(at, 1).to_pylist()
        conversations = tuple(
            tuple(Message(one["role"], one["text"]) for one in turns) for turns in found["conversations"]
        )
        return Sample(found["id"], tuple(found["images"]), conversations, f"{self.path} row {row + 1}")


def read_batches(path: Path) -> list[Any]:
    """The record batches of a shard, mapped, not read.

    Raises:
        DataError: it is damaged.
    """
    pyarrow = needed("pyarrow", "Shards")
    try:
        with pyarrow.memory_map(str(path)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
            return list(stream)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"The shard {path} is damaged ({reason}): get it again, or convert again.") from error


def read_index(folder: Path) -> dict[str, Any]:
    """What shards there are.

    Raises:
        DataError: there is no index, or it is no index of ours.
    """
    path = folder / INDEX
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        unfinished = " (a conversion that has not finished)" if (folder / "plan.json").exists() else ""
        raise DataError(
            f"The folder {folder} holds no shards{unfinished}: write them by `vlora data convert`."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: get it again, or run `vlora data convert` again.") from error
    version = cast("dict[str, Any]", found).get("version") if isinstance(found, dict) else None
    if version != VERSION:
        raise DataError(f"{path} has the version {version!r}, and {VERSION} is read here: convert the data again.")
    return cast("dict[str, Any]", found)
