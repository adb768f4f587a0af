"""VLoRA: an image becomes low-rank weights of a language model, which then sees it without a visual token.

    import vlora
    eyes = vlora.load("nano")
    eyes.ask("photo.png", "What is this?")

Importing this package registers its models with the Auto classes of transformers.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Eyes
    from .loading import load
    from .model import (
        GeneratorConfig,
        PerceptualWeights,
        VisualParameters,
        VLoRAConfig,
        VLoRAForConditionalGeneration,
        VLoRAModel,
        VLoRAProcessor,
    )

__version__ = "0.1.0.dev0"

_HOME = {
    "Eyes": "api",
    "load": "loading",
    "GeneratorConfig": "model",
    "PerceptualWeights": "model",
    "VLoRAConfig": "model",
    "VLoRAForConditionalGeneration": "model",
    "VLoRAModel": "model",
    "VLoRAProcessor": "model",
    "VisualParameters": "model",
}
__all__ = [
    "Eyes",
    "GeneratorConfig",
    "PerceptualWeights",
    "VLoRAConfig",
    "VLoRAForConditionalGeneration",
    "VLoRAModel",
    "VLoRAProcessor",
    "VisualParameters",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vlora' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def _is_command() -> bool:
    """Whether this process is the `vlora` command (or `python -m vlora...`), which imports torch when it needs it.

    So are the workers that it spawns, which get its arguments.
    """
    if not sys.argv:
        return False
    path = Path(sys.argv[0])
    return sys.argv[0] == "-m" or path.name in ("vlora", "vlora.exe") or path.parts[-2:] == ("cli", "__main__.py")


if not _is_command():
    import_module(".model", __name__).register()
