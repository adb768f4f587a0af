"""One file is one experiment: what is trained, on what, how long.

model:    the language model, the vision encoder, the generator
data:     the sources, and how they become steps
train:    which parts learn, steps, rates, checkpoints

A stage is data too: `stage: pretrain` trains the generator alone, `stage: finetune` what `train` names beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import ConfigError, InputError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """The parts of the model."""

    language_model: str = Field("nano", description="`nano`, a folder or a hub id")
    vision: str = Field("nano", description="`nano`, a folder or a hub id")
    vision_options: dict[str, Any] = Field(default_factory=dict, description="fields of the `nano` encoder's config")
    generator: dict[str, Any] = Field(default_factory=dict, description="fields of GeneratorConfig")
    checkpoint: str | None = Field(
        None, description="a VLoRA checkpoint that training begins from, such as stage one's"
    )
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    views: tuple[tuple[int, int], ...] = Field(
        ((0, 0),), description="how the trained model looks: [right, down] in pixels, once each; training looks once"
    )
    chat_template: str | None = Field(None, description="Jinja; None keeps the language model's")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="precision of the frozen language model")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"


class SourceSection(_Section):
    """One set of samples, in one of the formats of `vlora.data.formats`."""

    format: Literal[
        "llava", "messages", "captions", "folder", "webdataset", "dataset", "shards", "easy-vqa", "nano"
    ] = Field(description="how the files are written")
    path: str | None = Field(
        None, description="a file, a folder, or a pattern of files; of a data set its hub id too; of nano its part"
    )
    images: str | None = Field(
        None, description="the folder that relative paths of images begin at; default: the file's"
    )
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$", description="default: from the path")
    split: str = Field("train", description="of a data set that has several")
    prompts: tuple[str, ...] = Field((), description="what the user says where the format has captions only")
    columns: dict[str, str] = Field(default_factory=dict, description="names of columns where they are not the usual")
    weight: float | None = Field(None, gt=0, description="share of the mixture; None for all: everything once an epoch")
    limit: int | None = Field(None, ge=1, description="use only the first so many samples")
    augment: bool = Field(False, description="mirror, shift and scale the images at random")


class DataSection(_Section):
    """The sources, and how they become steps."""

    sources: tuple[SourceSection, ...] = (SourceSection(format="easy-vqa", augment=True),)  # type: ignore[call-arg]
    questions_per_image: int = Field(1, ge=1, description="conversations about one look at an image, in one step")
    batches: Literal["length", "random"] = Field("length", description="rows of one length together, or as they come")
    shuffle_blocks: int = Field(64, ge=1, description="blocks of the disk that are shuffled as one")
    max_text_tokens: int | None = Field(
        None, ge=8, description="longer texts are cut; None: the language model's limit"
    )
    max_broken: int = Field(
        100, ge=0, description="so many broken images are skipped and listed, one more stops the run"
    )
    workers: int | Literal["auto"] = Field("auto", description="processes that decode images, for each trainer")


class LoraSection(_Section):
    """LoRA on the language model."""

    rank: int = Field(128, ge=1)
    alpha: float = Field(256, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...] = ("q", "k", "v", "o", "gate", "up", "down")
    layers: tuple[int, ...] | None = Field(None, description="decoder blocks, counted from 0; None for all")


class TrainSection(_Section):
    """What learns, and the optimisation."""

    language_model: Literal["frozen", "full", "lora"] = "frozen"
    vision: Literal["frozen", "trained"] = "frozen"
    generator: Literal["frozen", "trained"] = Field("trained", description="or the projector, for visual tokens")
    lora: LoraSection = LoraSection()  # type: ignore[call-arg]
    steps: int | None = Field(None, ge=1, description="optimiser steps; or `epochs`")
    epochs: float | None = Field(None, gt=0, description="passes over the data; or `steps`")
    images_per_step: int = Field(16, ge=1, description="the global batch: looks, or texts without an image, in a step")
    images_per_device: int | None = Field(None, ge=1, description="at most so many at a time; None: all of a process's")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: its steps for matrices, AdamW's for the rest"
    )
    learning_rate: float = Field(1e-3, gt=0, description="of the generator, or the projector")
    output_rate: float = Field(1.0, gt=0, description="learning rate of B, scales and static factors, over the rest's")
    language_model_rate: float | None = Field(None, gt=0, description="None: learning_rate")
    vision_rate: float | None = Field(None, gt=0, description="None: learning_rate")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    schedule: Literal["cosine", "constant"] = Field("constant", description="constant falls at its end only")
    warmup_steps: int | None = Field(None, ge=0, description="None: warmup_ratio")
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    decay_steps: int = Field(400, ge=0, description="of `constant`: the rate falls to zero over these last steps")
    max_grad_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    parallel: Literal["auto", "ddp", "fsdp", "zero2"] = Field(
        "auto", description="how several processes share the work"
    )
    seed: int = 0
    log_steps: int = Field(10, ge=1)
    log_ids: bool = Field(False, description="keep a list of the ids that each step has seen")
    save_steps: int = Field(100, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    stored_dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="precision of the final weights")
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()

    @property
    def divisible(self) -> bool:
        """Whether processes may hold parts of a matrix: Muon steps by whole ones."""
        return self.optimizer != "muon"

    def sharing(self, processes: int) -> Literal["ddp", "fsdp", "zero2"]:
        """How so many processes share the work, as asked.

        For `auto`: what is trained in stage one is small enough for every GPU to hold all of it; a whole language model
        is not, unless its matrices must be whole.
        """
        if self.parallel != "auto":
            return self.parallel
        return "fsdp" if self.language_model == "full" and self.divisible and processes > 1 else "ddp"

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class TrainConfig(_Section):
    """A whole experiment."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="names the run folder")
    stage: Literal["pretrain", "finetune"] = "pretrain"
    paradigm: Literal["weights", "visual-tokens"] = Field("weights", description="VLoRA, or the baseline it is for")
    model: ModelSection = ModelSection()  # type: ignore[call-arg]
    data: DataSection = DataSection()  # type: ignore[call-arg]
    train: TrainSection = TrainSection()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        train = self.train
        trained = (train.language_model != "frozen", train.vision == "trained", train.generator == "trained")
        if self.stage == "pretrain" and trained[0]:
            raise ValueError("train.language_model: stage pretrain keeps it frozen; choose stage: finetune")
        if not any(trained):
            raise ValueError("train: everything is frozen; train the generator, the language_model or the vision")
        if (train.steps is None) == (train.epochs is None):
            raise ValueError("train.steps, train.epochs: give exactly one of the two")
        if not self.data.sources:
            raise ValueError("data.sources: there is none; name at least one")
        if not train.divisible and train.parallel in ("fsdp", "zero2"):
            raise ValueError(
                f"train.optimizer: muon steps by whole matrices, which train.parallel {train.parallel} divides; choose "
                "ddp, or adamw"
            )
        weights = [source.weight for source in self.data.sources]
        if any(weights) and not all(weights):
            raise ValueError("data.sources: give every source a weight, or none of them")
        return self


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
    if error["type"] == "value_error":  # our own rules name their fields themselves
        return str(error["ctx"]["error"])
    where = ".".join(str(part) for part in error["loc"]) or "(top level)"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown; choose from {', '.join(_siblings(error['loc']))}"
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _siblings(location: tuple[str | int, ...]) -> list[str]:
    section: Any = TrainConfig
    for part in location[:-1]:
        section = get_args(section)[0] if isinstance(part, int) else section.model_fields[part].annotation
    return list(section.model_fields)


def _apply(fields: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise InputError(f"The override {override!r} is not of the form section.field=value, as in train.steps=500.")
    place: Any = fields
    for key in keys[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else _item(place, key, override)
    if isinstance(place, dict):
        cast("dict[str, Any]", place)[keys[-1]] = yaml.safe_load(value)
    else:
        _item(place, keys[-1], override)
        place[int(keys[-1])] = yaml.safe_load(value)


def _item(place: Any, key: str, override: str) -> Any:
    if not isinstance(place, list):
        raise InputError(f"The override {override!r} asks for {key!r} of a single value.")
    items = cast("list[Any]", place)
    if not key.isdecimal() or int(key) >= len(items):
        raise InputError(f"The override {override!r} asks for item {key!r} of a list of {len(items)}, counted from 0.")
    return items[int(key)]
