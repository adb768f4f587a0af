"""Which files a path means: one, those of a folder, or those of a pattern such as `data/{00000..00331}.tar`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import DataError, InputError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def files_of(format: str, path: str | Path | None, suffixes: Sequence[str]) -> list[Path]:
    """The files, sorted; of a folder those with one of the suffixes.

    Raises:
        InputError: no path.
        DataError: there is no such file.
    """
    if path is None:
        raise InputError(f"The format {format} needs a path: name its file or folder.")
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        found = sorted(one for one in given.iterdir() if one.suffix.lower() in suffixes and one.is_file())
        if not found:
            raise DataError(f"The folder {given} holds no {' or '.join(suffixes)} file (format {format}): correct it.")
        return found
    named = _expanded(str(given))
    if len(named) > 1:
        missing = next((one for one in named if not os.path.isfile(one)), None)
        if missing:
            raise DataError(f"There is no file {missing!r} of {str(path)!r} (format {format}): correct the pattern.")
        return [Path(one) for one in named]
    found = sorted(Path(one) for one in glob.glob(str(given), recursive=True) if os.path.isfile(one))
    if not found:
        raise DataError(f"There is no file {str(path)!r} (format {format}): correct the path.")
    return found


def _expanded(pattern: str) -> list[str]:
    """Each number of `{000..331}`, with as many digits as the first has."""
    found = _RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [one for number in numbers for one in _expanded(pattern[: found.start()] + number + pattern[found.end() :])]
