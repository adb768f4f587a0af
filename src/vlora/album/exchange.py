"""What goes from album to album, and out of one: merge and export."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ..errors import AlbumError, InputError
from .album import Album
from .entries import every
from .shards import PRECISIONS, Precision, pack, unpack
from .upkeep import Tell
from .writer import Pictures, Writer

BATCH = 256
"""Files that are copied together."""


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
