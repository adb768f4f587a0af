"""Where the rows of a big file begin: found once by reading it through, kept as memory-mapped columns.

A file of 30 million rows takes minutes to read through, and its index takes 900 MB; neither is wanted in each of
sixty-four workers. So the columns of a big file are kept as `.npy` files in the user's cache folder, under a name made
of the path, size and time of the file, and every process maps them. Small files are read through every time.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ... import cache
from ...errors import DataError

Columns: TypeAlias = Mapping[str, NDArray[Any]]

VERSION = 1
KEPT_FROM = 1_000_000
"""Bytes of a file from which on its index is kept on the disk."""


class Index:
    """Columns of one length, in memory or mapped; pickled as what they are, or as where they lie.

    Args:
        columns: by name.
        folder: where they lie as `NAME.npy`; None: nowhere.
    """

    def __init__(self, columns: Columns, folder: Path | None = None) -> None:
        self._columns, self._folder = dict(columns), folder

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getstate__(self) -> dict[str, Any]:
        kept = list(self._columns) if self._folder else self._columns
        return {"columns": kept, "folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._folder = state["folder"]
        self._columns = _mapped(self._folder, state["columns"]) if self._folder else state["columns"]


def index_of(files: Sequence[Path], kind: str, *, build: Callable[[], Columns]) -> Index:
    """The index of some files, made or found.

    Args:
        files: on whose path, size and time it depends.
        kind: of index; another kind of the same files is another index.
        build: reads the files through.

    Raises:
        DataError: a file cannot be read.
    """
    key, size = _key(files, kind)
    if size < KEPT_FROM:
        return Index(build())
    folder = cache_folder() / key
    if found := _load(folder):
        return found
    try:
        held = cache.hold(folder, lambda: None)
    except OSError:  # no cache, then: every process reads the files through for itself
        return Index(build())
    with held:
        return _load(folder) or _keep(build(), folder)  # another process may have been first


def cache_folder() -> Path:
    """Where indexes are kept: `indexes` in the cache."""
    return cache.cache_folder() / "indexes"


def repeated(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of some ids, given as hashes, were there before."""
    order = np.argsort(hashes, kind="stable")
    again = np.zeros(len(hashes), dtype=np.bool_)
    ordered = hashes[order]
    again[order[1:][ordered[1:] == ordered[:-1]]] = True
    return again


def hash_of(id: str) -> int:
    """64 bits of an id."""
    return int.from_bytes(hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _key(files: Sequence[Path], kind: str) -> tuple[str, int]:
    """A name for the index, and the bytes of the files."""
    size = 0
    digest = hashlib.sha256(f"{VERSION} {kind}".encode())
    for file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}): give a file that exists.") from error
        size += state.st_size
        digest.update(f"\0{file.absolute()}\0{state.st_size}\0{state.st_mtime_ns}".encode())
    return digest.hexdigest()[:32], size


def _load(folder: Path) -> Index | None:
    try:
        names = (folder / "columns").read_text().split()
        return Index(_mapped(folder, names), folder)
    except (OSError, ValueError):
        return None


def _mapped(folder: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}


def _keep(columns: Columns, folder: Path) -> Index:
    """Write beside the target, then rename: what is there is whole."""
    try:
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError:
        return Index(columns)
    try:
        for name, column in columns.items():
            np.save(partial / f"{name}.npy", column)
        (partial / "columns").write_text(" ".join(columns))
        partial.rename(folder)
        return _load(folder) or Index(columns)
    except OSError:  # a full disk: the index stays in memory
        return Index(columns)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
