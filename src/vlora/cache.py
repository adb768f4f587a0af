"""The folder of what is kept between runs: converted models, indexes, fetched pictures."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "VLORA_CACHE"


def cache_folder() -> Path:
    """Return `VLORA_CACHE`, or the user's cache folder of this platform; it need not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("vlora"))
