"""What keeps an album in order: verify, prune, merge, export."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import save

from ..errors import AlbumError, InputError
from .album import Album
from .entries import COLUMNS, PAGE, Entry, every
from .shards import PRECISIONS, Precision, checksums, pack, unpack
from .writer import Pictures, Writer

BATCH = 256
"""Pictures that are copied together."""

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


# ---- merge --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Merged:
    """What `merge` did.

    Args:
        album: the folder that everything went into.
        sources: the albums that were read.
        files: that were listed.
        images: pictures that were new.
    """

    album: str
    sources: tuple[str, ...]
    files: int
    images: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def merge(
    sources: Sequence[str | Path], album: str | Path, *, dtype: Precision | None = None, progress: Tell | None = None
) -> Merged:
    """Put all that is in some albums of one model into one album, which is made if need be.

    A file that several of them have is listed as the last of them has it. Merging one album into a new one of a
    smaller precision compresses it.

    Args:
        sources: folders of albums.
        album: the folder of the album that they go into.
        dtype: precision of a new album; None: that of the first source.
        progress: told after each batch of files.

    Raises:
        InputError: no source, or a precision that would have to be invented.
        AlbumError: albums of different models, or one that cannot be read or written.
    """
    opened = [Album(source) for source in sources]
    if not opened:
        raise InputError("There is no album to merge: give at least one, and the album they go into.")
    first = opened[0]
    meta = {"identity": first.identity.to_json(), "model": first.model, "shape": " ".join(map(str, first.shape))}
    with Writer.make(album, meta, dtype or (None if _exists(album) else first.dtype)) as writer:
        for source in opened:
            _check_mergeable(source, writer)
        total, done, images = sum(map(len, opened)), 0, 0
        for source in opened:
            for files, new in _copy(source, writer):
                done, images = done + files, images + new
                if progress is not None:
                    progress(done, total)
        writer.compact(least=2)
    return Merged(str(writer.folder), tuple(str(one.folder) for one in opened), done, images)


def _exists(album: str | Path) -> bool:
    from . import is_album

    return is_album(album)


def _check_mergeable(source: Album, writer: Writer) -> None:
    if source.folder.resolve() == writer.folder.resolve():
        raise InputError(f"The album {str(source.folder)!r} cannot be merged into itself: give another one.")
    source.identity.check(writer.identity, album=source.folder, model=f"that of {writer.folder}")
    if PRECISIONS.index(source.dtype) > PRECISIONS.index(writer.dtype):
        raise InputError(
            f"The album {str(source.folder)!r} is stored in {source.dtype}, which cannot become {writer.dtype} again: "
            f"merge into an album of {source.dtype} or less, or encode its images anew."
        )


def _copy(source: Album, writer: Writer) -> Iterator[tuple[int, int]]:
    """Copy in batches; yields how many files and new pictures each had."""
    entries = every(source.index)
    while batch := list(islice(entries, BATCH)):
        wanted = {entry.image for entry in batch}
        there = {row[0] for row in writer.index.among("SELECT hash FROM images WHERE hash IN (?*)", wanted)}
        new = sorted(wanted - there)
        pictures = None
        if new:
            names, packed = source.packed(new)
            if source.dtype != writer.dtype:
                packed = pack(unpack(packed), writer.dtype)
            sizes = dict[str, tuple[int, int]](
                (row[0], (row[1], row[2]))
                for row in source.index.among("SELECT hash, width, height FROM images WHERE hash IN (?*)", new)
            )
            pictures = Pictures(names, [sizes[name] for name in names], packed)
        if writer.commit(pictures, batch):
            raise AlbumError(f"Pictures were taken out of the album {str(writer.folder)!r} meanwhile: merge again.")
        yield len(batch), len(new)
    writer.commit(None, (), [problem for problem in source.problems() if problem.path not in writer])


# ---- export -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Args:
        parameters: a safetensors file, which `VisualParameters.load` reads: one row for each picture.
        listing: a JSON file that says which row each image is.
        files: listed.
        images: rows.
    """

    parameters: str
    listing: str
    files: int
    images: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def export(album: Album, target: str | Path, *, select: Sequence[str] | None = None) -> Exported:
    """Write the visual parameters of some images as one file, and a listing beside it.

    Args:
        album: to export from.
        target: `NAME.safetensors`; the listing becomes `NAME.json`.
        select: patterns, see `Album.select`; None for all.

    Raises:
        InputError: no image fits, or the target cannot be written.
        AlbumError: damaged parameters.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise InputError(f"{str(target)!r} is no name for an export: give one that ends in .safetensors.")
    entries = list(every(album.index, select))
    if not entries:
        raise InputError(
            f"No image of the album {str(album.folder)!r} fits: `vlora album info --list` shows their paths."
        )
    pictures = list(dict.fromkeys(entry.image for entry in entries))
    row_of = {picture: row for row, picture in enumerate(pictures)}
    by_picture = {entry.image: entry for entry in entries}
    seen = album.parameters([by_picture[picture] for picture in pictures])
    listing = {
        "format": "vlora-album-export",
        "format_version": 1,
        "model": album.model,
        "identity": asdict(album.identity),
        "stored_as": album.dtype,
        "images": [
            {"path": entry.path, "hash": entry.image, "row": row_of[entry.image], "bytes": entry.bytes}
            for entry in entries
        ],
    }
    beside = target.with_suffix(".json")
    # The listing first: a file of parameters never stands there without one.
    _write(beside, json.dumps(listing, indent=1).encode() + b"\n")
    _write(target, save({"visual_parameters": seen.values}))
    return Exported(str(target), str(beside), len(entries), len(pictures))


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be written ({(error.strerror or 'unknown reason').lower()}): give a file in a "
            "folder of yours, on a disk with room."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
