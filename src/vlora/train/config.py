"""One file is one experiment: what is trained, on what, how long.

model:    the two frozen parts and the generator
data:     which questions about which images
train:    steps, learning rates, checkpoints
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, InputError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """The parts of the model."""

    language_model: str = Field("nano", description="`nano`, a folder or a hub id")
    vision: str = Field("nano", description="`nano`, a folder or a hub id")
    vision_options: dict[str, Any] = Field(default_factory=dict, description="fields of the `nano` encoder's config")
    generator: dict[str, Any] = Field(default_factory=dict, description="fields of GeneratorConfig")
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    chat_template: str | None = Field(None, description="Jinja; None keeps the language model's")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="precision of the frozen language model")
    attention: Literal["sdpa", "eager"] = "sdpa"


class DataSection(_Section):
    """The questions."""

    name: Literal["easy-vqa"] = "easy-vqa"
    questions_per_image: int = Field(4, ge=1, description="questions about one look at an image, in one step")
    augment: bool = Field(True, description="mirror, shift and scale the images at random")
    limit_images: int | None = Field(None, ge=1, description="use only the first so many images")


class TrainSection(_Section):
    """The optimisation."""

    steps: int = Field(1000, ge=1)
    images_per_step: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    output_rate: float = Field(1.0, gt=0, description="learning rate of B, scales and static factors, over the rest's")
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(30, ge=0)
    decay_steps: int = Field(400, ge=0, description="the rate is constant until these last steps, then falls to zero")
    max_grad_norm: float = Field(1.0, gt=0)
    seed: int = 0
    log_steps: int = Field(10, ge=1)
    save_steps: int = Field(100, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    stored_dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="precision of the final weights")


class TrainConfig(_Section):
    """A whole experiment."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="names the run folder")
    model: ModelSection = ModelSection()  # type: ignore[call-arg]
    data: DataSection = DataSection()  # type: ignore[call-arg]
    train: TrainSection = TrainSection()  # type: ignore[call-arg]


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file and apply `a.b=c` overrides.

    Raises:
        InputError: no such file, not YAML, or an override without `=`.
        ConfigError: all wrong fields at once, each with its path.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"There is no config file {str(path)!r}: give a YAML file such as configs/nano.yaml."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The config file {str(path)!r} cannot be read: give a YAML file.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"The config file {str(path)!r} is not valid YAML{where}: correct it there.") from error
    if not isinstance(content, dict):
        raise InputError(f"The config file {str(path)!r} must hold sections (model, data, train), not a single value.")
    fields = cast("dict[str, Any]", content)
    for override in overrides or []:
        _apply(fields, override)
    return parse(fields, str(path))


def parse(fields: dict[str, Any], source: str) -> TrainConfig:
    """Check fields and name all that are wrong.

    Raises:
        ConfigError: see `load_config`.
    """
    problems: list[str] = []
    config: TrainConfig | None = None
    try:
        config = TrainConfig.model_validate(fields, strict=False)
    except ValidationError as error:
        problems += [_problem(dict(e)) for e in error.errors()]
    problems += _generator_problems(fields)
    if problems or config is None:
        raise ConfigError(source, problems)
    return config


def _generator_problems(fields: dict[str, Any]) -> list[str]:
    """The generator's options have a home of their own; its findings join the list under their full path."""
    from ..model import GeneratorConfig

    model = fields.get("model")
    options = cast("dict[str, Any]", model).get("generator") if isinstance(model, dict) else None
    if not isinstance(options, dict):
        return []
    known = set(GeneratorConfig.__annotations__) - {"model_type", "base_config_key"}
    options = cast("dict[str, Any]", options)
    problems = [
        f"model.generator.{name}: unknown; choose from {', '.join(sorted(known))}"
        for name in options
        if name not in known
    ]
    try:
        GeneratorConfig(**{name: value for name, value in options.items() if name in known})
    except ConfigError as error:
        problems += [f"model.generator.{problem}" for problem in error.problems]
    except (TypeError, ValueError) as error:
        problems.append(f"model.generator: a value has the wrong type ({str(error).splitlines()[-1].strip()})")
    return problems


def _problem(error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "(top level)"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown; choose from {', '.join(_siblings(error['loc']))}"
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _siblings(location: tuple[str | int, ...]) -> list[str]:
    section: type[BaseModel] = TrainConfig
    for part in location[:-1]:
        section = cast("type[BaseModel]", section.model_fields[str(part)].annotation)
    return list(section.model_fields)


def _apply(fields: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise InputError(f"The override {override!r} is not of the form section.field=value, as in train.steps=500.")
    for key in keys[:-1]:
        child = fields.setdefault(key, {})
        if not isinstance(child, dict):
            raise InputError(f"The override {override!r} asks for a field of {key!r}, which is a single value.")
        fields = cast("dict[str, Any]", child)
    fields[keys[-1]] = yaml.safe_load(value)
