"""Weight files of either form, safetensors or `.bin`: what they hold, without reading it; and a few tensors at a time.

A `.bin` file is a pickle. It is read with `weights_only=True`, which builds tensors and refuses all else unexecuted.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import CheckpointError

NAMES = ("model.safetensors", "pytorch_model.bin")  # in the order of preference
_ZIP = b"PK\x03\x04"  # how torch.save begins a file since 1.6
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * (self.dtype.itemsize if self.dtype else 0)

    def __str__(self) -> str:
        return f"{self.key!r} in {self.file}"


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a whole model's weights, in one file or in several."""
    return any((folder / name).is_file() or _index(folder, name).is_file() for name in NAMES) or bool(_parts(folder))


def list_folder(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model, by its name, read off the files' headers.

    Raises:
        CheckpointError: no weights, a missing, damaged or superfluous file, or an index that does not fit the files.
    """
    for name in NAMES:
        if _index(folder, name).is_file():
            return _list_index(_index(folder, name))
        if (folder / name).is_file():
            return list_file(folder / name)
    parts = _parts(folder)
    if parts:
        raise CheckpointError(f"{parts[0]} is a part of a model, and there is no index beside it: get the index too.")
    raise CheckpointError(
        f"There are no weights in {folder}: give a folder with {' or '.join(NAMES)}, whole or parted."
    )


def list_file(path: Path, expected: Sequence[str] = ()) -> dict[str, Stored]:
    """Every tensor of one file.

    Args:
        path: a safetensors or `.bin` file.
        expected: what an index says that it holds; named in errors.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if path.suffix == ".safetensors":
        with _readable(path, expected), safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {
                key: Stored(path, key, tuple(found.get_shape()), _DTYPES.get(found.get_dtype()))
                for key, found in slices.items()
            }
    return {key: Stored(path, key, tuple(tensor.shape), tensor.dtype) for key, tensor in _load(path, expected).items()}


@contextmanager
def opened(path: Path) -> Generator[Callable[[str], Tensor]]:
    """A function that gives a file's tensors by name; what it gives must not be used after the block.

    The files are mapped: what is not asked for is not read.
    """
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            yield file.get_tensor
    else:
        yield _load(path, ()).__getitem__


def _index(folder: Path, name: str) -> Path:
    return folder / f"{name}.index.json"


def _parts(folder: Path) -> list[Path]:
    stems = [name.split(".") for name in NAMES]
    return sorted(path for stem, suffix in stems for path in folder.glob(f"{stem}-*-of-*.{suffix}"))


def _list_index(index: Path) -> dict[str, Stored]:
    files = _read_index(index)
    listed = [part for part in _parts(index.parent) if part.suffix in {Path(name).suffix for name in files}]
    for part in listed:
        if part.name not in files:
            raise CheckpointError(f"{part} is not named in {index.name}: take it away, or get the index it belongs to.")
    found: dict[str, Stored] = {}
    for name, keys in files.items():
        path = index.parent / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, which holds {_and_more(keys)}: get it again.")
        held = list_file(path, keys)
        for key in keys:
            if key not in held:
                raise CheckpointError(f"{path} lacks {key!r}, which {index.name} promises: get the file again.")
        for key in sorted(held.keys() - set(keys)):
            raise CheckpointError(f"{path} holds {key!r}, of which {index.name} knows nothing: get both again.")
        found |= held
    return found


def _read_index(index: Path) -> dict[str, list[str]]:
    """The names of the tensors in each file."""
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[str, list[str]] = {}
        for key, name in where.items():
            if Path(name).name != name:
                raise ValueError(name)  # a file elsewhere
            files.setdefault(name, []).append(key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged: get it again.") from error
    return files


def _load(path: Path, expected: Sequence[str]) -> dict[str, Tensor]:
    """A `.bin` file, mapped if its form allows."""
    with _readable(path, expected):
        with path.open("rb") as file:
            mapped = file.read(len(_ZIP)) == _ZIP
        loaded: Any = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds no table of tensors: give the file that torch.save wrote of a state dict.")
    table: dict[Any, Any] = loaded
    for key, value in table.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise CheckpointError(f"{path} holds something else than a tensor at {key!r}: it is no model's state dict.")
    return table


@contextmanager
def _readable(path: Path, expected: Sequence[str]) -> Generator[None]:
    """Turn what is raised about unreadable files into one sentence."""
    what = f", and {_and_more(expected)} with it" if expected else ""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused{what}: it holds more than tensors, or is damaged, and nothing in it was executed; "
            "get it from a source you trust, as safetensors if there is a choice."
        ) from error
    except Exception as error:  # whatever the readers stumble over in bytes that are no weights
        raise CheckpointError(f"{path} is damaged or cut short{what}: get it again.") from error


def _and_more(keys: Iterable[str]) -> str:
    first, *rest = sorted(keys)
    return f"{first!r}{f' and {len(rest)} more' if rest else ''}"
