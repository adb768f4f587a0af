"""Pixels -> features, for every kind of encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModel, ConvNextConfig, PreTrainedConfig, ResNetConfig

from tests.helpers import images, tiny_generator_config, tiny_llm, tiny_vision, token_ids
from vlora.errors import InputError, UnsupportedModel
from vlora.model.assemble import assemble
from vlora.model.vision import encode, feature_shape, patch_count, takes_layers

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
# Positions before the patches: class token and registers.
ENCODERS: dict[str, tuple[int, dict[str, Any]]] = {
    "CLIPVisionConfig": (1, {}),
    "SiglipVisionConfig": (0, {}),
    "Dinov2Config": (1, {"mlp_ratio": 2}),
    "Dinov2WithRegistersConfig": (5, {"mlp_ratio": 2, "num_register_tokens": 4}),
    "ViTConfig": (1, {}),
}
PRESENT = [name for name in ENCODERS if hasattr(transformers, name)]


def _config(name: str, **fields: Any) -> PreTrainedConfig:
    return getattr(transformers, name)(**(SIZES | ENCODERS[name][1] | fields))


@pytest.mark.parametrize("name", PRESENT)
@torch.no_grad()
def test_features_of_a_transformer(name: str) -> None:
    config, before = _config(name), ENCODERS[name][0]
    encoder, pixels = AutoModel.from_config(config).eval(), images(2)
    states = encoder(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert len(states) == 4
    for layer in (-2, -1, 1):
        full = encode(encoder, pixels, feature_layer=layer, select="full")
        patches = encode(encoder, pixels, feature_layer=layer, select="default")
        assert torch.equal(full, states[layer])
        assert torch.equal(patches, states[layer][:, before:])
        assert feature_shape(config, select="full") == tuple(full.shape[1:]) == (16 + before, 32)
        assert feature_shape(config, select="default") == tuple(patches.shape[1:]) == (16, 32)
    assert takes_layers(config)


@pytest.mark.parametrize("select", ["default", "full"])
@pytest.mark.parametrize("name", PRESENT)
@torch.no_grad()
def test_a_model_wears_the_features_of_any_encoder(name: str, select: str) -> None:
    encoder = AutoModel.from_config(_config(name))
    model = assemble(
        causal_lm=tiny_llm(),
        vision_tower=encoder,
        generator=tiny_generator_config(targets=("q",)),
        vision_feature_select_strategy=select,
        vision_feature_layer=-1,
    )
    assert model(input_ids=token_ids(2, 4), pixel_values=images(2)).logits.isfinite().all()


@torch.no_grad()
def test_an_image_that_is_not_square() -> None:
    config = _config("ViTConfig", image_size=(16, 40))
    encoder = AutoModel.from_config(config).eval()
    features = encode(encoder, torch.randn(1, 3, 16, 40), feature_layer=-2, select="default")
    assert feature_shape(config, select="default") == tuple(features.shape[1:]) == (10, 32)
    assert feature_shape(config, select="full") == (11, 32)


@pytest.mark.parametrize("select", ["default", "full"])
@pytest.mark.parametrize("size", [24, 48])
@torch.no_grad()
def test_an_image_of_another_size_is_refused(size: int, select: str) -> None:
    """DINOv2 takes images of any size; a generator is built for one number of patches."""
    model = assemble(
        causal_lm=tiny_llm(),
        vision_tower=AutoModel.from_config(_config("Dinov2Config")),
        generator=tiny_generator_config(targets=("q",)),
        vision_feature_select_strategy=select,
    )
    with pytest.raises(InputError, match="use images of the size in the configuration"):
        model.perceive(torch.randn(1, 3, size, size))


@torch.no_grad()
def test_features_of_a_convolutional_encoder() -> None:
    encoder, pixels = tiny_vision("efficientnet"), images(2)
    features = encode(encoder, pixels, feature_layer=-2, select="default")
    assert torch.equal(features, encoder(pixel_values=pixels).last_hidden_state)
    assert torch.equal(features, encode(encoder, pixels, feature_layer=0, select="full"))
    for select in ("default", "full"):
        assert feature_shape(encoder.config, select=select) == tuple(features.shape[1:])
    assert patch_count(encoder.config) == 4
    assert not takes_layers(encoder.config)


@torch.no_grad()
def test_pixels_take_the_precision_of_the_encoder() -> None:
    encoder = tiny_vision().to(torch.bfloat16)
    assert encode(encoder, images(1), feature_layer=-2, select="default").dtype == torch.bfloat16


@pytest.mark.parametrize("config", [ResNetConfig(), ConvNextConfig()], ids=["resnet", "convnext"])
@pytest.mark.parametrize("select", ["default", "full"])
def test_an_encoder_without_patches_is_refused(config: PreTrainedConfig, select: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"'{config.model_type}'.*clip_vision_model, siglip_vision_model"):
        feature_shape(config, select=select)
