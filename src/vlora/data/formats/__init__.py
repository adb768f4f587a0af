"""How data lie on a disk: one file for each format, all of them read as samples.

| format | file | what it is |
|---|---|---|
| `llava` | `llava.py` | LLaVA's JSON, of the pre-training and of the instruction mix |
| `messages` | `messages.py` | JSON or JSON lines with `messages` and `images` |
| `easy-vqa` | `easy_vqa.py` | the set that nano was trained on |

`rules.py` says what every sample keeps to. docs/data.md has an example of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ...errors import DataError, InputError
from ..sample import Source

__all__ = ["FORMATS", "open_source"]

FORMATS = ("llava", "messages", "easy-vqa")


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

    Raises:
        InputError: no such format, or an option that it does not have.
        DataError: files that cannot be read, with the line.
    """
    if format not in FORMATS:
        raise InputError(f"There is no format {format!r}: choose from {', '.join(FORMATS)}.")
    options = {"name": name or _name(format, path), "augment": augment}
    source = _open(format, path, images, split, prompts, dict(columns or {}), options)
    if limit is None:
        return source
    from .base import First

    return First(source, limit)


def _open(
    format: str,
    path: str | Path | None,
    images: str | Path | None,
    split: str,
    prompts: Sequence[str],
    columns: dict[str, str],
    options: dict[str, Any],
) -> Source:
    if format == "easy-vqa":
        from .easy_vqa import EasyVQASource

        return EasyVQASource(cast("Any", split), **options)
    file = _existing(format, path)
    root = _folder(images)
    if format == "llava":
        from .llava import LlavaSource

        return LlavaSource(file, images=root, **options)
    from .messages import MessagesSource

    return MessagesSource(file, images=root, columns=columns, **options)


def _existing(format: str, path: str | Path | None) -> Path:
    if path is None:
        raise InputError(f"The format {format} needs a path: name its file or folder.")
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(f"There is no file {str(path)!r} (format {format}): correct the path.")
    return found


def _folder(images: str | Path | None) -> Path | None:
    if images is None:
        return None
    found = Path(images).expanduser()
    if not found.is_dir():
        raise DataError(f"There is no folder {str(images)!r} for images: correct it, or leave it out.")
    return found


def _name(format: str, path: str | Path | None) -> str:
    """A name made from the last part of a path, of letters that a name may have."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem if path else "").strip("-")
    return stem or format
