"""Figures as PNG files: what can be refused before anything is computed, and files that are whole.

Needs the extra `plot` (matplotlib); nothing of it is imported before a figure is drawn.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError, MissingDependency

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSTALL = 'pip install "vlora-mllm[plot]"'


def check_file(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is drawn.

    Raises:
        InputError: no `.png`, a folder, or a folder that does not exist or cannot be written.
        MissingDependency: matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"The figure is a PNG, and {str(path)!r} does not end in .png: give another name.")
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a folder" if path.is_dir() else f"needs the folder {str(path.parent)!r}, which does not exist"
        raise InputError(f"The figure {str(path)!r} {wrong}: give a file in an existing folder.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"The figure {str(path)!r} cannot be written: give a file in a folder of yours.")
    _check_matplotlib()


def check_folder(folder: Path) -> None:
    """Refuse a folder for figures that can be neither made nor written to, before anything is drawn.

    Raises:
        InputError: it is such a folder.
        MissingDependency: matplotlib is not installed.
    """
    _check_matplotlib()
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        raise InputError(f"The figures cannot go into {folder}, for {there} is a file: name a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"The figures cannot go into {folder}, for {there} may not be written to: name another folder."
        )


def write(figures: Mapping[Path, Figure], *, dpi: int) -> None:
    """Write figures as PNG, each of them whole or not at all.

    Args:
        figures: by file; the folders must exist. What is there is replaced.
        dpi: pixels per inch.

    Raises:
        InputError: one cannot be written.
    """
    drawn = {path: _png(figure, dpi) for path, figure in figures.items()}
    for path, content in drawn.items():
        try:
            _write_whole(path, content)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"The figure {str(path)!r} cannot be written ({reason}): give another.") from error


def _check_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency(f"Figures need matplotlib, which is not installed: run `{INSTALL}`.")


def _png(figure: Figure, dpi: int) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, facecolor="white")
    return content.getvalue()


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # gone already, unless something failed
