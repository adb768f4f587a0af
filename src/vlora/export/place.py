"""What is written appears when it is complete, and leaves nothing if it is not.

A folder or a file is made beside its destination, in a hidden folder, and renamed. Whatever stood there before goes
only when its successor is whole.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError, VLoRAError


def free_folder(destination: Path, *, ours: Collection[str] = (), force: bool = False) -> Path:
    """The absolute path of a folder that does not exist yet, or is empty, or may be replaced.

    Args:
        destination: of the folder.
        ours: names of the files that may be replaced; a folder with any other is left alone.
        force: replace them.

    Raises:
        InputError: the place is taken.
    """
    if not destination.exists():
        return destination.absolute()
    found = sorted(path.name for path in destination.iterdir()) if destination.is_dir() else [destination.name]
    foreign = [name for name in found if name not in ours]
    if destination.is_dir() and not foreign and (force or not found):
        return destination.absolute()
    if not ours or not destination.is_dir():
        raise InputError(f"{destination} exists already and is no empty folder: give another place.")
    if foreign:
        raise InputError(f"{destination} holds {foreign[0]}, which would be lost: give another place.")
    raise InputError(f"{destination} exists already: give another place, or replace it with force (--force).")


def free_file(destination: Path, *, force: bool = False) -> Path:
    """The absolute path of a file that does not exist yet, or may be replaced.

    Args:
        destination: of the file.
        force: replace a file that stands there.

    Raises:
        InputError: the place is taken.
    """
    if destination.is_dir():
        raise InputError(f"{destination} is a folder, and one file is to be written: give the name of a file.")
    if destination.exists() and not force:
        raise InputError(f"{destination} exists already: give another place, or replace it with force (--force).")
    return destination.absolute()


def check_anchor(destination: Path) -> Path:
    """The folder that exists already, in which or below which something will be made.

    Args:
        destination: absolute.

    Raises:
        InputError: a file stands in the way.
    """
    anchor = next(parent for parent in destination.parents if parent.exists())
    if not anchor.is_dir():
        raise InputError(f"{destination} cannot be made, for {anchor} is no folder: give another place.")
    return anchor


@contextmanager
def appearing(destination: Path, nbytes: int) -> Generator[Path]:
    """An empty folder to fill, which takes the place of `destination` at the end of the block.

    Args:
        destination: absolute; a folder that stands there is replaced.
        nbytes: that will be written, at least.

    Raises:
        InputError: too little space, or whatever else the place cannot do; then nothing has changed.
    """
    with _beside(destination, nbytes) as folder:
        yield folder
        folder.chmod(0o755)  # it was made for the owner only
        destination.parent.mkdir(parents=True, exist_ok=True)
        _put(folder, destination)


@contextmanager
def appearing_file(destination: Path, nbytes: int) -> Generator[Path]:
    """A path to write a file to, which takes the place of `destination` at the end of the block.

    Args:
        destination: absolute; a file that stands there is replaced.
        nbytes: that will be written, at least.

    Raises:
        InputError: too little space, or whatever else the place cannot do; then nothing has changed.
    """
    with _beside(destination, nbytes) as folder:
        path = folder / destination.name
        yield path
        path.chmod(0o644)
        destination.parent.mkdir(parents=True, exist_ok=True)
        path.replace(destination)
        folder.rmdir()


@contextmanager
def _beside(destination: Path, nbytes: int) -> Generator[Path]:
    """A hidden folder on the same disk; whatever of it is left at the end of the block goes, if that fails."""
    anchor = check_anchor(destination)
    free = shutil.disk_usage(anchor).free
    if free < nbytes:
        needs, left = (
            f"{number / 1e9:.1f} GB" if nbytes >= 1e8 else f"{number / 1e6:.1f} MB" for number in (nbytes, free)
        )
        raise InputError(f"{destination} needs {needs} and {anchor} has {left} left: give another place.")
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=anchor))
        yield folder
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, VLoRAError):
            reason = error.strerror or error
            raise InputError(f"{destination} cannot be written ({reason}): give another place.") from error
        raise


def _put(folder: Path, destination: Path) -> None:
    """Rename a folder onto its place; an old one steps aside first, and comes back if that fails."""
    if not destination.exists() or not any(destination.iterdir()):
        folder.replace(destination)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{destination.name}-old-", dir=destination.parent))
    destination.replace(old)
    try:
        folder.replace(destination)
    except BaseException:
        old.replace(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)
