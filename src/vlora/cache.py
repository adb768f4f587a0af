"""The folder of what is kept between runs: converted models, indexes, fetched pictures; and its locks."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

CACHE_VARIABLE = "VLORA_CACHE"


def cache_folder() -> Path:
    """Return `VLORA_CACHE`, or the user's cache folder of this platform; it need not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("vlora"))


def hold(place: Path, waiting: Callable[[], None]) -> AbstractContextManager[object]:
    """Take the lock beside a place of the cache, which one process at a time makes; it ends with its process.

    Args:
        place: whose folder above is made if need be.
        waiting: told if another process has the lock, before it is waited for.

    Returns:
        The lock, which was taken and is given back at the end of a `with`.

    Raises:
        OSError: it cannot be written there.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f"{place.name}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        waiting()
        return lock.acquire()
