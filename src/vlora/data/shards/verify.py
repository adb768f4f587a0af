"""Shards against their index: each is there, whole, opens, has its rows; and no id comes twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..formats.index import hash_of, repeated
from ..formats.shards import read_batches, read_index

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Args:
        folder: of the shards.
        shards: how many there should be.
        samples: how many were found in whole shards.
        problems: one sentence each.
    """

    folder: str
    shards: int
    samples: int
    problems: tuple[str, ...]


def verify(
    folder: Path, *, index: dict[str, Any] | None = None, tell: Callable[[int, int], None] = lambda done, total: None
) -> Verdict:
    """Read all shards through.

    Args:
        folder: of the shards.
        index: None: the one that lies there.
        tell: told how many shards are done, and of how many.

    Raises:
        DataError: there is no index.
    """
    index = index or read_index(folder)
    shards: list[dict[str, Any]] = index["shards"]
    problems: list[str] = []
    hashes: list[np.ndarray] = []
    for number, one in enumerate(shards, 1):
        found = _shard(folder / one["file"], one)
        if isinstance(found, str):
            problems.append(found)
        else:
            hashes.append(found)
        tell(number, len(shards))
    samples = sum(map(len, hashes))
    if not problems and samples != index["samples"]:
        problems.append(f"The index of {folder} counts {index['samples']} samples, and its shards hold {samples}.")
    if hashes and (again := int(repeated(np.concatenate(hashes)).sum())):
        problems.append(f"{again} ids of {folder} come more than once.")
    return Verdict(str(folder), len(shards), samples, tuple(problems))


def _shard(path: Path, expected: dict[str, Any]) -> np.ndarray | str:
    """The hashes of a shard's ids; or what is wrong with it."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        return f"The shard {path} cannot be read ({(error.strerror or 'unknown reason').lower()})."
    if digest.hexdigest() != expected["sha256"]:
        return f"The shard {path} is not the one that was written, its hash differs."
    try:
        batches = read_batches(path)
    except DataError as error:
        return str(error)
    ids = [hash_of(id) for batch in batches for id in batch.column("id").to_pylist()]
    if len(ids) != expected["rows"]:
        return f"The shard {path} has {len(ids)} rows instead of {expected['rows']}."
    return np.array(ids, dtype=np.uint64)
