"""How data lie on a disk: one file for each format, all of them read as samples.

| format | file | what it is |
|---|---|---|
| `llava` | `llava.py` | LLaVA's JSON, of the pre-training and of the instruction mix |
| `messages` | `messages.py`, `parquet.py` | JSON, JSON lines or Parquet with `messages` and `images` |
| `captions` | `captions.py` | CSV or TSV of images and captions |
| `folder` | `folder.py` | images with `.txt` beside them |
| `webdataset` | `webdataset.py` | tars as img2dataset writes them |
| `dataset` | `dataset.py` | data sets of Hugging Face |
| `shards` | `shards.py` | our own, for many samples; written by `vlora data convert` |
| `easy-vqa` | `easy_vqa.py` | the set that nano was trained on |
| `nano` | `nano.py` | pictures that are drawn: shapes, digits, emoji ...; `path` says which |

`rules.py` says what every sample keeps to. docs/data.md has an example of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from ...errors import DataError, InputError
from ..sample import Source
from .base import Chain, First, Rows
from .files import files_of

__all__ = ["FORMATS", "open_source"]


@dataclass(frozen=True)
class _Wanted:
    """The arguments of `open_source`, read."""

    format: str
    path: str | Path | None
    images: Path | None
    name: str
    split: str
    prompts: tuple[str, ...]
    augment: bool
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def common(self) -> dict[str, Any]:
        """What all sources take."""
        return {"name": self.name, "augment": self.augment}

    @property
    def needed_path(self) -> Path:
        """The path, which must be given.

        Raises:
            InputError: it is not.
        """
        if self.path is None:
            raise InputError(f"The format {self.format} needs a path: name its file or folder.")
        return Path(self.path).expanduser()


def open_source(
    format: str,
    path: str | Path | None = None,
    *,
    images: str | Path | None = None,
    name: str | None = None,
    split: str = "train",
    prompts: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    augment: bool = False,
    streaming: bool = False,
) -> Source:
    """A source of samples that can be read in any order.

    Args:
        format: one of `FORMATS`.
        path: a file, a folder, or a pattern of files; of a data set its hub id too.
        images: the folder that relative paths of images begin at; None: the file's.
        name: of the source; None: made from the path.
        split: of a data set that has several.
        prompts: what the user says where the format has captions only.
        columns: names of columns where they are not the usual.
        limit: only the first so many samples.
        augment: whether images may be changed at random.
        streaming: refused: a stream has no order but its own.

    Raises:
        InputError: no such format, or an option that it does not have.
        DataError: files that cannot be read, with the line.
        MissingDependency: a library that the format needs is not installed.
    """
    if format not in FORMATS:
        raise InputError(f"There is no format {format!r}: choose from {', '.join(FORMATS)}.")
    if streaming:
        raise InputError(
            f"{path} is streamed, and training reads samples in an order of its own: write it to shards first by "
            "`vlora data convert --stream`."
        )
    wanted = _Wanted(
        format,
        path,
        _folder(images),
        name or name_of(format, path),
        split,
        tuple(prompts),
        augment,
        dict(columns or {}),
    )
    for option, formats in _TAKEN_BY.items():
        if getattr(wanted, option) and format not in formats:
            raise InputError(f"The format {format} has no {option}: leave it out, or choose {', '.join(formats)}.")
    source = FORMATS[format](wanted)
    return source if limit is None else First(source, limit)


def name_of(format: str, path: str | Path | None) -> str:
    """A name made from the last part of a path, of letters that a name may have."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem if path else "").strip("-")
    return stem or format


# -- one function for each format; what it needs is imported when it is asked for ------------------------


def _llava(wanted: _Wanted) -> Source:
    from .llava import LlavaSource

    return _each(wanted, (".json", ".jsonl"), lambda file, of: LlavaSource(file, images=wanted.images, **of))


def _messages(wanted: _Wanted) -> Source:
    from .messages import MessagesSource
    from .parquet import ParquetSource

    def make(file: Path, of: dict[str, Any]) -> Rows:
        kind = ParquetSource if file.suffix.lower() == ".parquet" else MessagesSource
        return kind(file, images=wanted.images, columns=wanted.columns, **of)

    return _each(wanted, (".jsonl", ".json", ".parquet"), make)


def _captions(wanted: _Wanted) -> Source:
    from .captions import TableSource

    def make(file: Path, of: dict[str, Any]) -> Rows:
        return TableSource(file, images=wanted.images, prompts=wanted.prompts, columns=wanted.columns, **of)

    return _each(wanted, (".csv", ".tsv"), make)


def _folder_of_images(wanted: _Wanted) -> Source:
    from .folder import FolderSource

    folder = wanted.needed_path
    if not folder.is_dir():
        raise DataError(f"There is no folder {str(wanted.path)!r} (format folder): correct the path.")
    return FolderSource(folder, prompts=wanted.prompts, **wanted.common)


def _webdataset(wanted: _Wanted) -> Source:
    from .webdataset import TarSource

    files = files_of(wanted.format, wanted.path, (".tar",))
    return TarSource(files, prompts=wanted.prompts, columns=wanted.columns, **wanted.common)


def _dataset(wanted: _Wanted) -> Source:
    from .dataset import DatasetSource

    return DatasetSource(
        str(wanted.needed_path) if Path(wanted.needed_path).exists() else str(wanted.path),
        split=wanted.split,
        images=wanted.images,
        prompts=wanted.prompts,
        columns=wanted.columns,
        **wanted.common,
    )


def _shards(wanted: _Wanted) -> Source:
    from .shards import ShardSource

    return ShardSource(wanted.needed_path, **wanted.common)


def _easy_vqa(wanted: _Wanted) -> Source:
    from .easy_vqa import EasyVQASource

    return EasyVQASource(cast("Any", wanted.split), **wanted.common)


def _nano(wanted: _Wanted) -> Source:
    from ..sets.nano.base import SETS
    from .nano import NanoSource

    if wanted.path is None:
        raise InputError(f"The format nano needs a path, which is the part of the set: {', '.join(SETS)}.")
    return NanoSource(str(wanted.path), cast("Any", wanted.split), **wanted.common)


_Make: TypeAlias = Callable[[_Wanted], Source]

FORMATS: Mapping[str, _Make] = {
    "llava": _llava,
    "messages": _messages,
    "captions": _captions,
    "folder": _folder_of_images,
    "webdataset": _webdataset,
    "dataset": _dataset,
    "shards": _shards,
    "easy-vqa": _easy_vqa,
    "nano": _nano,
}
"""How each is opened."""


_TAKEN_BY = {
    "prompts": ("captions", "folder", "webdataset", "dataset"),
    "columns": ("messages", "captions", "webdataset", "dataset"),
    "images": ("llava", "messages", "captions", "dataset"),
}


def _each(wanted: _Wanted, suffixes: Sequence[str], make: Callable[[Path, dict[str, Any]], Rows]) -> Source:
    """One source of one file, or of several."""
    files = files_of(wanted.format, wanted.path, suffixes)
    if len(files) == 1:
        return make(files[0], wanted.common)
    parts = [make(file, {"name": file.stem, "augment": wanted.augment}) for file in files]
    return Chain(parts, **wanted.common)


def _folder(images: str | Path | None) -> Path | None:
    if images is None:
        return None
    found = Path(images).expanduser()
    if not found.is_dir():
        raise DataError(f"There is no folder {str(images)!r} for images: correct it, or leave it out.")
    return found
