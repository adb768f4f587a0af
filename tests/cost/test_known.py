"""The built-in sizes give the published numbers of parameters, so no field of them is a slip."""

from __future__ import annotations

import pytest

from vlora.cost import formulas, shapes
from vlora.cost.known import ALIASES, ENCODERS, LANGUAGE_MODELS
from vlora.cost.sources import find

PUBLISHED = {
    "vicuna-7b": 6_738_415_616,
    "vicuna-13b": 13_015_864_320,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "gemma-2b": 2_506_172_416,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-1b": 999_885_952,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    # Vision towers alone, without a projection to text.
    "clip-vit-l-14-336": 303_507_456,
    "clip-vit-l-14": 303_179_776,
    "clip-vit-b-16": 85_799_424,
    "clip-vit-b-32": 87_456_000,
    "siglip-so400m-14-384": 428_225_600,
    "siglip-b-16-224": 92_884_224,
    "dinov2-s": 22_056_576,
    "dinov2-b": 86_580_480,
    "dinov2-l": 304_368_640,
    "efficientnet-lite0": 4_652_008,
    "efficientnet-lite1": 5_416_680,
    "efficientnet-lite2": 6_092_072,
}
PATCHES = {
    "clip-vit-l-14-336": 576,
    "clip-vit-l-14": 256,
    "clip-vit-b-16": 196,
    "clip-vit-b-32": 49,
    "siglip-so400m-14-384": 729,
    "siglip-b-16-224": 196,
    "dinov2-s": 1369,
    "dinov2-b": 1369,
    "dinov2-l": 1369,
    "efficientnet-lite0": 64,
    "efficientnet-lite1": 64,
    "efficientnet-lite2": 64,
}


def test_every_model_is_checked() -> None:
    assert PUBLISHED.keys() == LANGUAGE_MODELS.keys() | ENCODERS.keys()
    assert PATCHES.keys() == ENCODERS.keys()
    assert not LANGUAGE_MODELS.keys() & ENCODERS.keys()


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models(name: str) -> None:
    assert formulas.llm_parameters(shapes.language_model(find(name).config)) == PUBLISHED[name]


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str) -> None:
    sizes = shapes.encoder(find(name).config)
    assert (formulas.encoder_parameters(sizes), sizes.features) == (PUBLISHED[name], PATCHES[name])


@pytest.mark.parametrize("alias", ALIASES)
def test_hub_ids(alias: str) -> None:
    assert find(alias).name == find(alias.split("/")[1]).name == ALIASES[alias]
