"""1. Pixels -> features: patch hidden states of any vision encoder of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig

from ..errors import UnsupportedModel


def encode(vision_tower: nn.Module, pixel_values: Tensor, *, feature_layer: int, select: str) -> Tensor:
    """`[image, 3, height, width]` -> features `[image, patch, vision_dim]`.

    Encoders that list their hidden states per layer (CLIP, SigLIP, DINOv2, ViT ...) give those of `feature_layer`;
    convolutional ones give their one map.

    Args:
        vision_tower: the encoder.
        pixel_values: normalised pixels.
        feature_layer: index into the hidden states; -2 is the last but one.
        select: `default` drops what stands before the patches (class token, registers), `full` keeps it.
    """
    config: Any = vision_tower.config
    pixel_values = pixel_values.to(next(vision_tower.parameters()).dtype)
    if not takes_layers(config):
        return vision_tower(pixel_values=pixel_values).last_hidden_state
    states = vision_tower(pixel_values=pixel_values, output_hidden_states=True).hidden_states[feature_layer]
    if select == "full":
        return states
    # Counted on the pixels: some encoders take images of any size, and no patch may be dropped unseen.
    patches = _squared(tuple(pixel_values.shape[-2:]), config.patch_size)
    return states[:, states.shape[1] - patches :]


def shifted(pixel_values: Tensor, right: int, down: int) -> Tensor:
    """Pixels `[..., height, width]` moved by so many to the right and down; those at the border are repeated."""
    if not right and not down:
        return pixel_values
    height, width = pixel_values.shape[-2:]
    rows = (torch.arange(height, device=pixel_values.device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=pixel_values.device) - right).clamp(0, width - 1)
    return pixel_values[..., rows[:, None], columns]


def takes_layers(config: PreTrainedConfig) -> bool:
    """Whether the encoder is a transformer with a choice of layers."""
    return hasattr(config, "num_attention_heads") and hasattr(config, "patch_size")


def patch_count(config: PreTrainedConfig) -> int:
    """Patches of one image.

    Raises:
        UnsupportedModel: the configuration does not say.
    """
    if hasattr(config, "patches"):
        return int(config.patches)
    if takes_layers(config) and hasattr(config, "image_size"):
        return _squared(config.image_size, config.patch_size)
    raise UnsupportedModel(
        f"A vision encoder of type {config.model_type!r} does not state image_size and patch_size; choose one whose "
        "hidden states are patches: clip_vision_model, siglip_vision_model, dinov2, vit, efficientnet_lite."
    )


def feature_shape(config: PreTrainedConfig, *, select: str) -> tuple[int, int]:
    """(patches, vision_dim) of the features, found by running an encoder of this shape without weights."""
    if not takes_layers(config):
        return patch_count(config), int(config.hidden_size)
    if select == "default":
        return patch_count(config), int(config.hidden_size)
    with torch.device("meta"):
        encoder = AutoModel.from_config(config)
        height, width = _sides(config.image_size)
        pixels = torch.empty(1, getattr(config, "num_channels", 3), height, width)
        states: Any = encoder(pixel_values=pixels).last_hidden_state
    return int(states.shape[1]), int(states.shape[2])


def _sides(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _squared(image_size: Any, patch_size: Any) -> int:
    (height, width), (patch_height, patch_width) = _sides(image_size), _sides(patch_size)
    return (height // patch_height) * (width // patch_width)
