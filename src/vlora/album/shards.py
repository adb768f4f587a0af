"""Shards: safetensors files that hold the visual parameters of many images.

    visual_parameters   [image, targets, layers, dim]   float32, bfloat16 or int8
    scales              [image, targets, layers]        float32, with int8 only: value = int8 · scale
    images              [image, 32]                     uint8, the SHA-256 of each image

The names of the images travel with their parameters, so that an index which says something else is found out. A
shard in float32 or bfloat16 is also what `VisualParameters.load` reads.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import AlbumError, InputError
from .index import one_sentence

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
VALUES, SCALES, NAMES = "visual_parameters", "scales", "images"
PARTIAL = ".partial"
MAX_OPEN = 64

Packed = dict[str, Tensor]


def check_precision(dtype: str) -> None:
    """Refuse what is no precision of an album.

    Raises:
        InputError: it is none.
    """
    if dtype not in PRECISIONS:
        raise InputError(f"There is no precision {dtype!r} for an album: give {', '.join(PRECISIONS)}.")


def pack(values: Tensor, dtype: Precision) -> Packed:
    """Bring visual parameters `[image, targets, layers, dim]` into the form in which they are kept."""
    values = values.detach().to("cpu", torch.float32)
    if dtype == "int8":
        scales = values.abs().amax(-1) / 127
        steps = values / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
        return {VALUES: steps.round().to(torch.int8), SCALES: scales}
    return {VALUES: values.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32).contiguous()}


def unpack(packed: Packed) -> Tensor:
    """What was kept, as float32 `[image, targets, layers, dim]`."""
    values = packed[VALUES].float()
    return values * packed[SCALES][..., None] if SCALES in packed else values


def checksums(packed: Packed) -> list[str]:
    """One for each image, of the bytes that are kept."""
    parts = [
        packed[name].flatten(1).contiguous().view(torch.uint8).numpy() for name in (VALUES, SCALES) if name in packed
    ]
    return [
        hashlib.sha256(b"".join(row.tobytes() for row in rows)).hexdigest()[:32] for rows in zip(*parts, strict=True)
    ]


def write(folder: Path, packed: Packed, names: Sequence[str], metadata: dict[str, str]) -> tuple[str, int]:
    """Write a shard that is whole or not there.

    Args:
        folder: of the shards.
        packed: what to keep.
        names: hashes of the images, in the order of the rows.
        metadata: into the head of the file.

    Returns:
        Its file name and its size in bytes.

    Raises:
        AlbumError: it cannot be written.
    """
    listing = torch.tensor([list(bytes.fromhex(name)) for name in names], dtype=torch.uint8)
    # To bytes first, not to a mapped file: on a full disk that ends the process, where this raises.
    data = save({**packed, NAMES: listing}, metadata=metadata)
    name = f"{uuid4().hex}.safetensors"
    partial = folder / f"{name}{PARTIAL}"
    with one_sentence(folder.parent):
        folder.mkdir(exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(folder / name)
            _sync_folder(folder)
        finally:
            partial.unlink(missing_ok=True)
    return name, len(data)


def _hashes(listing: Tensor) -> list[str]:
    return [bytes(row.tolist()).hex() for row in listing]


def _sync_folder(folder: Path) -> None:
    """Make a renaming last; where folders cannot be opened, as on Windows, the system sees to it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Shards:
    """The shards of an album, each mapped into memory when a row of it is first asked for.

    Args:
        folder: of the shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, Any] = OrderedDict()

    def rows(self, name: str, rows: Sequence[int]) -> tuple[list[str], Packed]:
        """Some rows of a shard: the hashes of their images, and their parameters as they are kept.

        Raises:
            AlbumError: the shard is damaged.
            FileNotFoundError: it is gone; compaction may have moved its rows.
        """
        try:
            file = self._shard(name)
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            packed = {key: torch.cat([part[row : row + 1] for row in rows]) for key, part in slices.items()}
            if len(packed[VALUES]) != len(rows):
                raise IndexError(name)
            return _hashes(packed.pop(NAMES)), packed
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, RuntimeError, IndexError, KeyError, TypeError) as error:
            raise self._damaged(name) from error

    def whole(self, name: str) -> tuple[Packed, list[str]]:
        """All rows of a shard, and the hashes of their images.

        Raises:
            AlbumError: the shard is damaged.
            FileNotFoundError: it is gone.
        """
        try:
            file = self._shard(name)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            listing = tensors.pop(NAMES)
            if VALUES not in tensors or any(len(tensor) != len(listing) for tensor in tensors.values()):
                raise KeyError(VALUES)
            return tensors, _hashes(listing)
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, RuntimeError, KeyError, TypeError) as error:
            raise self._damaged(name) from error

    def forget(self) -> None:
        """Close what is open."""
        self._open.clear()

    def _shard(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def _damaged(self, name: str) -> AlbumError:
        return AlbumError(
            f"The shard {name} of the album {str(self.folder.parent)!r} is damaged: `vlora album prune --damaged` "
            "takes its images out, and `vlora encode` then encodes them again."
        )
