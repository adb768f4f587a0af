"""Adding to an album, so that a crash at any moment loses one batch at most; `index.py` says why."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from ..errors import AlbumError, InputError
from .album import Album, Problem
from .entries import Entry
from .identity import Eyes, Identity
from .index import INDEX, SHARDS, Index, one_sentence
from .shards import Packed, Precision, check_precision, checksums, write

FULL = 64 * 2**20
"""Bytes of a shard that compaction fills."""

SMALL = 64
"""Compaction waits for so many shards that are not full."""


@dataclass(frozen=True)
class Pictures:
    """Different pictures, ready to be stored.

    Args:
        names: their hashes.
        sizes: width and height of each.
        packed: their parameters, in the album's precision.
    """

    names: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    packed: Packed


class Writer(Album):
    """An album that is added to.

    Args:
        folder: of an album.

    Raises:
        AlbumError: no album, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, writable=True)
        self._since_compaction = 0

    @staticmethod
    def create(folder: str | Path, eyes: Eyes, *, dtype: Precision | None = None, model: str = "") -> Writer:
        """Open an album for writing, and make it if it is not there.

        Args:
            folder: of the album.
            eyes: the model.
            dtype: precision of what is stored; None: that of the album, float32 for a new one.
            model: the name of the model, for those who read the album.

        Raises:
            InputError: a folder with other things in it, or an album of another precision.
            AlbumError: an album of another model, or one that cannot be written.
        """
        generator = eyes.model.model.generator
        shape = (len(generator.targets), len(generator.layers), generator.config.dim)
        meta = {
            "identity": Identity.of(eyes).to_json(),
            "model": model or eyes.name,
            "shape": " ".join(map(str, shape)),
        }
        writer = Writer.make(folder, meta, dtype)
        writer.check(eyes)
        return writer

    @staticmethod
    def make(folder: str | Path, meta: dict[str, str], dtype: Precision | None = None) -> Writer:
        """As `create`, from what an index says of a model."""
        folder = Path(folder)
        if dtype is not None:
            check_precision(dtype)
        _check_folder(folder)
        with one_sentence(folder):
            (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        more = {"dtype": dtype or "float32", "created": created}
        index = Index(folder, writable=True)
        try:
            index.create(meta | more)
        finally:
            index.release()
        writer = Writer(folder)
        if dtype not in (None, writer.dtype):
            raise InputError(
                f"The album {str(folder)!r} is stored in {writer.dtype}, not in {dtype}: leave --dtype out, or give "
                "another folder."
            )
        writer.tidy()
        return writer

    # ---- adding -------------------------------------------------------------------------------------

    def commit(
        self, pictures: Pictures | None, files: Sequence[Entry] = (), problems: Iterable[Problem] = ()
    ) -> list[Entry]:
        """Store a batch: all of it, or, whatever happens, nothing.

        Args:
            pictures: new ones; those that another writer has stored meanwhile are left out.
            files: what shows them, or shows pictures that are in the album.
            problems: what could not be read.

        Returns:
            Files that could not be stored, because their picture is in the album no more: read them again.

        Raises:
            AlbumError: it cannot be written.
        """
        try:
            with self.index.transaction():
                stored = pictures is not None and self._store(pictures)
                lost = self._list(files)
                self.index.many("DELETE FROM problems WHERE path = ?", [(file.path,) for file in files])
                self.index.many("INSERT OR REPLACE INTO problems VALUES (?, ?)", problems)
        except AlbumError:  # a full disk, say: give back what the batch took, if the index agrees
            with suppress(AlbumError):
                self.tidy()
            raise
        self._since_compaction += stored
        if self._since_compaction >= SMALL:
            self.compact()
        return lost

    def _store(self, pictures: Pictures) -> bool:
        """Write a shard of the pictures that are not there yet, if any; inside a transaction."""
        there = {row[0] for row in self.index.among("SELECT hash FROM images WHERE hash IN (?*)", pictures.names)}
        kept = [number for number, name in enumerate(pictures.names) if name not in there]
        if not kept:
            return False
        packed = {key: tensor[kept] for key, tensor in pictures.packed.items()}
        names = [pictures.names[number] for number in kept]
        shard = self._write_shard(packed, names)
        rows = zip(
            names, range(len(names)), checksums(packed), (pictures.sizes[number] for number in kept), strict=True
        )
        self.index.many(
            "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)",
            [(image, shard, row, total, *size) for image, row, total, size in rows],
        )
        return True

    def _write_shard(self, packed: Packed, names: Sequence[str]) -> int:
        metadata = {"format": "vlora-album", "identity": self.identity.to_json(), "dtype": self.dtype}
        name, size = write(self.shards.folder, packed, names, metadata)
        self.index.rows("INSERT INTO shards (name, rows, bytes) VALUES (?, ?, ?)", [name, len(names), size])
        return self.index.value("SELECT id FROM shards WHERE name = ?", [name])

    def _list(self, files: Sequence[Entry]) -> list[Entry]:
        images = {file.image for file in files}
        there = {row[0] for row in self.index.among("SELECT hash FROM images WHERE hash IN (?*)", images)}
        now = time.time()
        self.index.many(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (f.path, f.name, f.archive, f.image, f.bytes, f.time, f.file, now, f.seal)
                for f in files
                if f.image in there
            ],
        )
        return [file for file in files if file.image not in there]

    # ---- keeping order ------------------------------------------------------------------------------

    def tidy(self) -> int:
        """Remove what killed writers have left: shards, whole or partial, that the index does not name.

        Returns:
            How many.
        """
        with self.index.transaction():  # who holds the lock is the only one who may be writing a shard
            left = self.leftovers()
            self._remove(left)
        return len(left)

    def compact(self, *, least: int | None = None) -> None:
        """Join shards that are not full, and drop the rows that no picture of the index uses.

        Args:
            least: of so many shards that are not full, fewer are left as they are; None: `SMALL`.
        """
        self._since_compaction, least = 0, least or SMALL
        while self._compact_once(least):
            least = 2

    def _compact_once(self, least: int) -> bool:
        old = list[str]()
        with self.index.transaction():
            group = self._to_compact(least)
            if group:
                old = self._join(group)
        self.shards.forget()
        self._remove(old)  # after the commit: until then the index names them
        return bool(old)

    def _to_compact(self, least: int) -> list[tuple[int, str, int]]:
        """Shards that fit into one: id, name, unused rows."""
        query = (
            "SELECT s.id, s.name, s.rows - COUNT(i.hash), s.bytes * COUNT(i.hash) / s.rows FROM shards s "
            "LEFT JOIN images i ON i.shard = s.id GROUP BY s.id ORDER BY s.id"
        )
        found = self.index.rows(query)
        small = [shard for shard in found if shard[3] < FULL // 2]
        chosen = small if len(small) >= max(least, 2) else [shard for shard in found if shard[2]]
        group, size = list[tuple[int, str, int]](), 0
        for number, name, unused, used in chosen:
            if group and size + used > FULL:
                break
            group.append((number, name, unused))
            size += used
        return group

    def _join(self, group: Sequence[tuple[int, str, int]]) -> list[str]:
        """Write the rows in use of some shards as one.

        A damaged shard stays as it is, for `verify` to find.

        Returns:
            Names of the shards that are needed no more.
        """
        parts, names, gone, unused = list[Packed](), list[str](), list[tuple[int, str]](), 0
        for number, shard, empty in group:
            rows = self.index.rows("SELECT hash, row FROM images WHERE shard = ? ORDER BY row", [number])
            if rows:
                try:
                    listed, packed = self.shards.rows(shard, [row[1] for row in rows])
                except (AlbumError, FileNotFoundError):
                    continue
                if listed != [row[0] for row in rows]:
                    continue
                parts.append(packed)
                names += listed
            gone.append((number, shard))
            unused += empty
        if len(gone) < 2 and not unused:
            return []
        if names:
            joined = self._write_shard({key: torch.cat([part[key] for part in parts]) for key in parts[0]}, names)
            places = [(joined, row, name) for row, name in enumerate(names)]
            self.index.many("UPDATE images SET shard = ?, row = ? WHERE hash = ?", places)
        self.index.many("DELETE FROM shards WHERE id = ?", [(number,) for number, _ in gone])
        return [shard for _, shard in gone]

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with one_sentence(self.folder):
                (self.shards.folder / name).unlink(missing_ok=True)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds other things."""
    if not os.path.exists(folder) or os.path.isfile(folder / INDEX):
        return
    if not os.path.isdir(folder):
        raise InputError(f"{str(folder)!r} is a file: give the folder of an album, or one that does not exist yet.")
    with one_sentence(folder):
        others = sorted({path.name for path in folder.iterdir()} - {SHARDS, f"{INDEX}-journal"})
    if others:
        raise InputError(
            f"The folder {str(folder)!r} holds other things ({others[0]}): give an album, an empty folder, or one that "
            "does not exist yet."
        )
