"""From a config to sizes: shapes, learning parts, and parameters counted on the meta device. No weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, LlavaConfig, PreTrainedConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from ..cost.bill import Shapes
from ..cost.memory import MIXED, SINGLE, Numbers, Precision, numbers_of
from ..cost.shapes import encoder, generator, language_model
from ..cost.sources import find, is_checkpoint, text_part, vision_part
from ..cost.training import Learning, Rows, lora_parameters
from ..errors import InputError, ModelNotFound
from ..model import GeneratorConfig, VLoRAConfig, VLoRAForConditionalGeneration
from ..model.efficientnet_lite import EfficientNetLiteConfig
from .config import ModelSection, TrainConfig

Paradigm = Literal["weights", "visual-tokens"]


@dataclass(frozen=True)
class Part:
    """A part of the model that is trained.

    Args:
        name: encoder, generator or projector, language model, or LoRA.
        numbers: in it.
        trained: whether it learns.
    """

    name: str
    numbers: int
    trained: bool


def model_config(config: TrainConfig) -> VLoRAConfig:
    """The configuration of the whole model, from names, folders, or what the hub has left in its cache.

    Raises:
        ModelNotFound: a name behind which no configuration is found without a network.
        InputError: `model.vision_options` that the encoder does not take.
    """
    section = config.model
    if section.checkpoint and (Path(section.checkpoint) / "config.json").is_file():
        begun = find(section.checkpoint)
        if is_checkpoint(begun):
            return begun.config  # training begins from it, and reads no other part of the config
    return VLoRAConfig(
        vision_config=_vision(section),
        text_config=text_part(_find(section.language_model)),
        generator_config=GeneratorConfig(**section.generator),
        vision_feature_layer=section.vision_feature_layer,
        vision_feature_select_strategy=section.vision_feature_select_strategy,
        views=section.views,
    )


def shapes_of(model: VLoRAConfig) -> Shapes:
    """The sizes that formulas count with."""
    decoder = language_model(model.text_config)
    tower = encoder(model.vision_config, select=model.vision_feature_select_strategy)
    return Shapes(decoder, tower, generator(model.generator_config, decoder, tower))


def learning_of(config: TrainConfig) -> Learning:
    """Which parts learn."""
    train = config.train
    lora = train.language_model == "lora"
    return Learning(
        language_model=train.language_model,
        vision=train.vision == "trained",
        bridge=train.generator == "trained",
        lora_rank=train.lora.rank if lora else 0,
        lora_targets=train.lora.targets if lora else (),
    )


def precision_of(config: TrainConfig, *, device: str = "cuda") -> Precision:
    """Of the trainer: bfloat16 products on a GPU and float32 on a CPU; what is frozen as `model.dtype` says."""
    if device == "cpu":
        return SINGLE
    return replace(MIXED, frozen=4) if config.model.dtype == "float32" else MIXED


def meta_parts(config: TrainConfig, model: VLoRAConfig, *, paradigm: Paradigm) -> tuple[Part, ...]:
    """Assemble the model where tensors have shapes only, and count the numbers of its parts."""
    with torch.device("meta"):
        whole: Any = VLoRAForConditionalGeneration(model)
        bridge: nn.Module = (
            whole.model.generator
            if paradigm == "weights"
            else LlavaMultiModalProjector(LlavaConfig(vision_config=model.vision_config, text_config=model.text_config))
        )
    learning = learning_of(config)
    # A tied head is the embedding, and counts once.
    llm = {id(p): p.numel() for part in (whole.model.language_model, whole.lm_head) for p in part.parameters()}
    tied = model.tie_word_embeddings and whole.lm_head.weight is not whole.get_input_embeddings().weight
    numbers = Numbers(
        encoder=_count(whole.model.vision_tower),
        bridge=_count(bridge),
        language_model=sum(llm.values()) - (whole.lm_head.weight.numel() if tied else 0),
        lora=lora_parameters(shapes_of(model), learning),
    )
    return parts_of(numbers, learning, paradigm=paradigm)


def formula_parts(shapes: Shapes, learning: Learning, *, paradigm: Paradigm) -> tuple[Part, ...]:
    """The same by formula."""
    rows = Rows(1, 1, visual_tokens=shapes.encoder.features if paradigm == "visual-tokens" else 0)
    return parts_of(numbers_of(shapes, rows, learning), learning, paradigm=paradigm)


def parts_of(numbers: Numbers, learning: Learning, *, paradigm: Paradigm) -> tuple[Part, ...]:
    """Numbers with names, and whether they learn."""
    parts = [
        Part("vision encoder", numbers.encoder, learning.vision),
        Part("generator" if paradigm == "weights" else "projector", numbers.bridge, learning.bridge),
        Part("language model", numbers.language_model, learning.full),
    ]
    return (*parts, Part("LoRA", numbers.lora, True)) if learning.lora else tuple(parts)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _vision(section: ModelSection) -> PreTrainedConfig:
    return nano_encoder(section) if section.vision == "nano" else vision_part(_find(section.vision))


def nano_encoder(section: ModelSection) -> EfficientNetLiteConfig:
    """The `nano` encoder with `model.vision_options`.

    Raises:
        InputError: options that it does not take.
    """
    try:
        return EfficientNetLiteConfig(**section.vision_options)
    except Exception as error:  # the strict configs of transformers raise several kinds
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"model.vision_options {section.vision_options} cannot be used: {reason}") from error


def _find(source: str) -> PreTrainedConfig:
    try:
        return find(source).config
    except ModelNotFound:
        try:
            return AutoConfig.from_pretrained(source, local_files_only=True)
        except (OSError, ValueError):
            pass
        raise
