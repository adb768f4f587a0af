"""From what a user names to configurations: a known model, a config.json, a folder, a VLoRA checkpoint."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from transformers import AutoConfig, PreTrainedConfig

from ..errors import CheckpointError, ModelNotFound, UnsupportedModel
from ..model import VLoRAConfig, register
from .known import ALIASES, ENCODERS, LANGUAGE_MODELS

NANO = "nano"
_NANO_FOLDER = Path(__file__).parents[1] / "nano"  # read as data: its config.json is all that is needed
_KNOWN: Mapping[str, Mapping[str, Any]] = LANGUAGE_MODELS | ENCODERS
_NAMES = {form: size for name, size in ALIASES.items() for form in (name.lower(), name.lower().split("/")[1])}


Source = str | Path | PreTrainedConfig


class Found(NamedTuple):
    """A configuration, and the name it goes by."""

    name: str
    config: Any


def find(source: Source) -> Found:
    """The configuration behind a name, a path, or a configuration.

    Args:
        source: a name of `known.py`, `nano`, a config.json, or a folder that holds one. Nothing is downloaded.

    Raises:
        ModelNotFound: none of these; names the closest known ones.
        CheckpointError: a config.json that cannot be read.
        UnsupportedModel: a type of model that transformers does not know.
    """
    if isinstance(source, PreTrainedConfig):
        return Found(source.name_or_path or source.model_type, source)
    name = str(source).lower()
    name = _NAMES.get(name, name)
    if name in _KNOWN:
        return Found(name, _build(dict(_KNOWN[name]), name))
    path = _NANO_FOLDER if name == NANO else Path(source)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ModelNotFound(_not_found(source))
    return Found(str(source), _build(_read(path), str(path)))


def text_part(config: Any) -> Any:
    """The language model of a model with several parts, else the configuration itself."""
    return getattr(config, "text_config", None) or config


def vision_part(config: Any) -> Any:
    """The vision encoder of a model with several parts, else the configuration itself."""
    return getattr(config, "vision_config", None) or config


def is_checkpoint(found: Found) -> bool:
    """Whether this is a VLoRA model, whose config holds all three parts."""
    return isinstance(found.config, VLoRAConfig)


def _not_found(source: str | Path) -> str:
    names = sorted(_KNOWN)
    close = difflib.get_close_matches(str(source).lower().rsplit("/", 1)[-1], names, n=3)
    meant = f"did you mean {' or '.join(close)}? Otherwise give" if close else "give"
    where = Path(source)
    what = (
        "is a folder without a config.json" if where.is_dir() else "is neither a file, nor a folder, nor a known model"
    )
    return (
        f"{str(source)!r} {what}: {meant} a config.json, a folder that holds one, {NANO}, or one of {', '.join(names)}."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: give the config.json of a model.") from error
    if not isinstance(fields, dict) or not isinstance(cast("dict[str, Any]", fields).get("model_type"), str):
        raise CheckpointError(f"{path} names no model_type: give the config.json of a model of transformers.")
    return cast("dict[str, Any]", fields)


def _build(fields: dict[str, Any], source: str) -> PreTrainedConfig:
    register()
    kind = fields.pop("model_type")
    try:
        return AutoConfig.for_model(kind, **fields)
    except (CheckpointError, UnsupportedModel):
        raise
    except Exception as error:  # the strict configurations of transformers raise several kinds
        if "Unrecognized model identifier" in str(error):
            raise UnsupportedModel(
                f"{source} is a model of type {kind!r}, which transformers does not know."
            ) from error
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        raise CheckpointError(f"{source} cannot be used ({reason}): correct it, or get it again.") from error
