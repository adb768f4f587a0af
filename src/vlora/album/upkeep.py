"""What keeps an album in order: verify and prune."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import AlbumError, InputError
from .album import Album
from .entries import COLUMNS, PAGE, Entry, every
from .shards import checksums
from .writer import Writer

Tell: TypeAlias = Callable[[int, int], None]
"""Told how many pictures are done, and of how many."""


# ---- verify -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """Something in an album that is not as it was written.

    Args:
        where: a shard, a picture, a file, or `index`.
        what: what is wrong with it.
    """

    where: str
    what: str


@dataclass
class Verdict:
    """What `verify` found.

    Args:
        album: its folder.
        files: checked.
        images: pictures checked.
        damage: all that is wrong; empty in a clean album.
        leftovers: shards of writers that were killed: harmless, and the next writer removes them.
        images_lost: hashes of the pictures that cannot be used.
        files_lost: paths of the files that cannot be trusted.
    """

    album: str
    files: int = 0
    images: int = 0
    damage: list[Damage] = field(default_factory=list[Damage])
    leftovers: list[str] = field(default_factory=list[str])
    images_lost: set[str] = field(default_factory=set[str])
    files_lost: set[str] = field(default_factory=set[str])

    @property
    def clean(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        facts = {"album": self.album, "clean": self.clean, "files": self.files, "images": self.images}
        return facts | {"damage": [asdict(one) for one in self.damage], "leftovers": self.leftovers}


def verify(album: Album, *, progress: Tell | None = None) -> Verdict:
    """Read all of an album and compare it with what was written.

    Args:
        album: to check.
        progress: told after each shard.
    """
    verdict = Verdict(str(album.folder), leftovers=album.leftovers())
    for (text,) in album.index.rows("PRAGMA integrity_check"):
        if text != "ok":
            verdict.damage.append(Damage("index", text))
    shards = album.index.rows("SELECT id, name, bytes FROM shards ORDER BY id")
    total = album.index.value("SELECT COUNT(*) FROM images")
    for number, name, size in shards:
        _verify_shard(album, verdict, number, name, size)
        if progress is not None:
            progress(verdict.images, total)
    for image, shard in album.index.rows("SELECT hash, shard FROM images WHERE shard NOT IN (SELECT id FROM shards)"):
        verdict.damage.append(Damage(image, f"the index puts it into shard {shard}, which there is not"))
        verdict.images_lost.add(image)
    _verify_files(album, verdict)
    return verdict


def _verify_shard(album: Album, verdict: Verdict, number: int, name: str, size: int) -> None:
    rows = album.index.rows("SELECT hash, row, sum FROM images WHERE shard = ?", [number])
    verdict.images += len(rows)
    try:
        if (found := (album.shards.folder / name).stat().st_size) != size:
            raise AlbumError(f"it has {found} bytes, and had {size}")
        packed, listed = album.shards.whole(name)
    except (AlbumError, OSError) as error:
        what = str(error) if isinstance(error, AlbumError) else (error.strerror or "unreadable").lower()
        verdict.damage.append(Damage(name, what))
        verdict.images_lost |= {row[0] for row in rows}
        return
    sums = checksums(packed)
    for image, row, total in rows:
        if not 0 <= row < len(listed) or listed[row] != image:
            verdict.damage.append(Damage(image, f"the index and the shard {name} disagree on where it lies"))
        elif sums[row] != total:
            verdict.damage.append(Damage(image, f"its parameters in {name} do not fit their checksum"))
        else:
            continue
        verdict.images_lost.add(image)


def _verify_files(album: Album, verdict: Verdict) -> None:
    images = {row[0] for row in album.index.rows("SELECT hash FROM images")}
    last = ""
    while page := album.index.rows(
        f"SELECT {COLUMNS}, seal FROM files WHERE path > ? ORDER BY path LIMIT {PAGE}", [last]
    ):
        last = page[-1][0]
        verdict.files += len(page)
        for row in page:
            entry, wrong = Entry(*row[:-1]), None
            if entry.seal != row[-1]:
                wrong = "its row of the index was altered"
            elif entry.image not in images:
                wrong = "its picture is not in the album"
            if wrong is not None:
                verdict.damage.append(Damage(entry.path, wrong))
                verdict.files_lost.add(entry.path)


# ---- prune --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pruned:
    """What `prune` took out, or would take out.

    Args:
        album: its folder.
        files: paths.
        images: pictures that no file shows any more.
        bytes_freed: 0 if nothing was done.
        done: whether it was done.
    """

    album: str
    files: tuple[str, ...]
    images: int
    bytes_freed: int
    done: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def prune(
    album: str | Path,
    *,
    select: Sequence[str] | None = None,
    gone: bool = False,
    damaged: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Take files out of an album, and close the gaps in its shards.

    Pictures that no file shows any more always go; with no option at all, only they.

    Args:
        album: the folder of the album.
        select: files that fit one of these patterns.
        gone: files that are not on the disk any more.
        damaged: files whose parameters or rows are damaged; to be encoded again.
        dry_run: only say what would go.

    Raises:
        InputError: every file is gone, which is rather a disk that is not there.
        AlbumError: the album cannot be read or written.
    """
    with Writer(album) as writer:
        verdict = verify(writer) if damaged else Verdict(str(writer.folder))
        paths = list(verdict.files_lost)
        paths += [
            row[0] for row in writer.index.among("SELECT path FROM files WHERE image IN (?*)", verdict.images_lost)
        ]
        if select is not None:
            paths += [entry.path for entry in every(writer.index, select)]
        if gone:
            paths += _gone(writer)
        paths = sorted(set(paths))
        before = _bytes(writer)
        images = _take_out(writer, paths, verdict.images_lost, gone=gone, dry_run=dry_run)
        if not dry_run:
            writer.compact(least=2)
            writer.tidy()
        return Pruned(str(writer.folder), tuple(paths), images, before - _bytes(writer), not dry_run)


class _Dry(Exception):
    """Ends a transaction that was only made to count."""


def _take_out(writer: Writer, paths: Sequence[str], lost: set[str], *, gone: bool, dry_run: bool) -> int:
    images = 0
    try:
        with writer.index.transaction():
            writer.index.many("DELETE FROM files WHERE path = ?", [(path,) for path in paths])
            unused = "hash NOT IN (SELECT image FROM files)"
            images = writer.index.value(f"SELECT COUNT(*) FROM images WHERE {unused}")
            writer.index.rows(f"DELETE FROM images WHERE {unused}")
            writer.index.many("DELETE FROM images WHERE hash = ?", [(image,) for image in lost])
            if gone:
                problems = [problem.path for problem in writer.problems() if not os.path.exists(problem.path)]
                writer.index.many("DELETE FROM problems WHERE path = ?", [(path,) for path in problems])
            if dry_run:
                raise _Dry
    except _Dry:
        pass
    return images


def _gone(writer: Writer) -> list[str]:
    there: dict[str, bool] = {}  # of a tar only once
    paths, total = list[str](), 0
    for entry in every(writer.index):
        total += 1
        place = entry.archive or entry.path
        if place not in there:
            there[place] = os.path.exists(place)
        if not there[place]:
            paths.append(entry.path)
    if total and len(paths) == total:
        raise InputError(
            f"All {total} files of the album {str(writer.folder)!r} are gone, as if their disk were not there: mount "
            "it, or take them out with --select '*'."
        )
    return paths


def _bytes(writer: Writer) -> int:
    return int(writer.index.value("SELECT TOTAL(bytes) FROM shards"))
