"""Sizes read off configurations are those of the real modules."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, PreTrainedConfig

from tests.helpers import KINDS, tiny_generator_config, tiny_llm, tiny_llm_config, tiny_model
from vlora.cost import formulas, shapes
from vlora.errors import ConfigError, InputError, UnsupportedModel
from vlora.model.inject import SUPPORTED, find_places
from vlora.model.weights import TARGETS


def parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("family", SUPPORTED)
@pytest.mark.parametrize("fields", [{}, {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}])
def test_language_models(family: str, fields: dict[str, Any]) -> None:
    llm = tiny_llm(family, **fields)
    sizes = shapes.language_model(llm.config)
    assert formulas.llm_parameters(sizes) == parameters(llm)
    places = find_places(llm.get_submodule("model"), TARGETS, range(4))
    assert tuple(sizes.place(place.layer, place.target) for place in places) == places


@pytest.mark.parametrize("tied", [True, False])
def test_tied_heads_are_counted_once(tied: bool) -> None:
    config = tiny_llm_config("llama", tie_word_embeddings=tied)
    sizes = shapes.language_model(config)
    assert formulas.llm_parameters(sizes) == parameters(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("vision", ["clip", "efficientnet"])
def test_generators(kind: dict[str, Any], vision: str) -> None:
    model = tiny_model("gemma2", vision=vision, **kind)
    llm = shapes.language_model(model.config.text_config)
    eyes = shapes.encoder(model.config.vision_config)
    written = shapes.generator(model.config.generator_config, llm, eyes)
    generator = model.model.generator
    assert written.places == generator.layout.places
    assert formulas.generator_parameters(written) == parameters(generator)
    assert formulas.trunk_parameters(written) == parameters(generator.trunks)
    assert formulas.b_parameters(written) == parameters(generator.b)

    def counted(*names: str) -> int:
        return sum(parameters(getattr(generator, name)) for name in names if hasattr(generator, name))

    assert formulas.a_parameters(written) == counted("a", "static_a")
    assert formulas.head_parameters(written) == counted("heads", "b_heads", "dictionaries", "b_dictionaries")
    assert formulas.perceptual_weights_bytes(written, 4) == generator.layout.numel * 4
    assert formulas.encoder_parameters(eyes) == parameters(model.model.vision_tower)


def test_every_position_as_a_feature() -> None:
    config = CLIPVisionConfig(image_size=28, patch_size=7)
    assert shapes.encoder(config).features == 16
    assert shapes.encoder(config, select="full").features == 17


def test_sliding_windows_are_known() -> None:
    assert shapes.language_model(tiny_llm_config("gemma2")).window == 6
    assert shapes.language_model(tiny_llm_config("llama")).window == 0


def test_unsupported_family() -> None:
    with pytest.raises(UnsupportedModel, match=r"'bert' cannot wear.*llama"):
        shapes.language_model(AutoConfig.for_model("bert"))


@pytest.mark.parametrize("config", [AutoConfig.for_model("resnet"), tiny_llm_config("llama")], ids=["resnet", "llama"])
def test_no_patches(config: PreTrainedConfig) -> None:
    with pytest.raises(UnsupportedModel, match="does not state image_size"):
        shapes.encoder(config)


@pytest.mark.parametrize("kind", ["swin", "videomae"])
def test_hidden_states_that_are_no_patches(kind: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"type '{kind}' are not the patches of one image; choose one"):
        shapes.encoder(AutoConfig.for_model(kind))


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(InputError, match="hidden = 0"):
        shapes.language_model(tiny_llm_config("llama", hidden_size=0))
    with pytest.raises(InputError, match="patches = 0"):
        shapes.encoder(CLIPVisionConfig(image_size=4, patch_size=7))
    with pytest.raises(InputError, match="patch_size"):
        shapes.encoder(CLIPVisionConfig(patch_size=0))


def test_generator_that_cannot_be() -> None:
    llm = shapes.language_model(tiny_llm_config("llama"))
    eyes = shapes.encoder(CLIPVisionConfig(image_size=28, patch_size=7))
    with pytest.raises(ConfigError, match="layers: 9 asked"):
        shapes.generator(tiny_generator_config(layers=(1, 9)), llm, eyes)
    with pytest.raises(ConfigError, match=r"mlp_ratio: 0\.01 gives"):
        shapes.generator(tiny_generator_config(mlp_ratio=0.01), llm, eyes)
