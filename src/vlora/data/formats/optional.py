"""Libraries that only some formats need."""

from __future__ import annotations

import importlib
from typing import Any

from ...errors import MissingDependency


def needed(module: str, what: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: its dotted name.
        what: it is needed for.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise MissingDependency(
            f"{what} need the library {library}, which is not installed: `pip install 'vlora-mllm[data]'`."
        ) from error
