"""Parquet files with `messages` and `images`, read by row groups.

A row group is decompressed as a whole, so it is the block of the disk; the last ones that were read are kept.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..sample import Sample
from .base import Rows
from .index import Columns, hash_of, index_of, repeated
from .messages import from_messages, measure
from .optional import needed

KEPT_GROUPS = 4


class ParquetSource(Rows):
    """One file.

    Args:
        path: it.
        name: see `Rows`.
        images: where relative paths of images begin; None: in the file's folder.
        columns: names of `messages`, `images` and `id`, where they are others.
        augment: see `Rows`.

    Raises:
        DataError: the file is damaged, or lacks the column of messages.
        MissingDependency: pyarrow is not installed.
    """

    def __init__(
        self, path: Path, *, name: str, images: Path | None, columns: dict[str, str] | None = None, augment: bool
    ) -> None:
        super().__init__(name, augment=augment)
        self.path, self.root = path, str(images or path.parent)
        self.columns = {name: (columns or {}).get(name, name) for name in ("messages", "images", "id")}
        with self._opened() as file:
            there = set(file.schema_arrow.names)
            groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        if self.columns["messages"] not in there:
            raise DataError(
                f"{path} has the columns {', '.join(sorted(there))} and no {self.columns['messages']}: name it by "
                "columns."
            )
        self._read = [name for name in self.columns.values() if name in there]
        self._groups = [rows for rows in groups if rows]
        self._numbers = [number for number, rows in enumerate(groups) if rows]
        self._ends = list(accumulate(self._groups))
        if not self._ends:
            raise DataError(f"{path} holds no row: give a file with samples.")
        self._index = index_of([path], f"parquet {sorted(self.columns.items())}", build=self._scan)
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def blocks(self) -> Sequence[int]:
        """See `Source`."""
        return self._groups

    @property
    def repeats(self) -> int:
        """See `Rows`."""
        return int(self._index["again"].sum())

    def length(self, index: int) -> int:
        """See `Rows`."""
        return int(self._index["characters"][index])

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        group = bisect_right(self._ends, index)
        table = self._group(group)
        (row,) = table.slice(index - (self._ends[group - 1] if group else 0), 1).to_pylist()
        own = row.get(self.columns["id"])
        id = str(index + 1) if own is None else str(own)
        if self._index["again"][index]:
            id = f"{id}#{index + 1}"
        return from_messages(row, id=id, where=f"{self.path} row {index + 1}", root=self.root, columns=self.columns)

    def _group(self, group: int) -> Any:
        if group not in self._kept:
            with self._opened() as file:
                self._kept[group] = file.read_row_group(self._numbers[group], columns=self._read, use_threads=False)
            while len(self._kept) > KEPT_GROUPS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]

    def _opened(self) -> Any:
        return _Opened(self.path)

    def _scan(self) -> Columns:
        hashes, characters = array("Q"), array("I")
        names = [name for name in self._read if name != self.columns["images"]]
        with self._opened() as file:
            for number in self._numbers:
                for row in file.read_row_group(number, columns=names, use_threads=False).to_pylist():
                    own = row.get(self.columns["id"])
                    hashes.append(hash_of(str(len(hashes) + 1) if own is None else str(own)))
                    try:
                        characters.append(measure(row[self.columns["messages"]]))
                    except (TypeError, KeyError, AttributeError):  # told when the row is asked for
                        characters.append(0)
        return {
            "characters": np.asarray(characters, dtype=np.uint32),
            "again": repeated(np.asarray(hashes, dtype=np.uint64)),
        }


class _Opened:
    """A Parquet file that is closed again, and whose errors are one sentence."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, None

    def __enter__(self) -> Any:
        parquet = needed("pyarrow.parquet", "Parquet files")
        try:
            self.file: Any = parquet.ParquetFile(self.path)
        except Exception as error:
            raise self._sentence(error) from error
        return self.file

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.file is not None:
            self.file.close()
        if error is not None and type(error).__module__.startswith("pyarrow"):
            raise self._sentence(error) from error

    def _sentence(self, error: BaseException) -> DataError:
        reason = " ".join(str(error).split())[:100]
        return DataError(f"{self.path} cannot be read as Parquet ({reason}): get it again.")
