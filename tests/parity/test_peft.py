"""(e) As an adapter in `peft`, images give the same logits: worn, merged, swapped, or several in one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter_from_state_dict
from torch import Tensor

from tests.helpers import KINDS, images, plain_llm, shared_model, token_ids
from vlora.export.adapter import Adapter, adapter_of, base_of
from vlora.export.peft import lora_config, state_dict
from vlora.model import PerceptualWeights, VLoRAForConditionalGeneration
from vlora.model.inject import SUPPORTED
from vlora.model.weights import MERGEABLE

IDS = token_ids(1, 9)
COMPOSED: list[dict[str, Any]] = [
    {},
    {"static_rank": 2},
    {"factors": "b"},
    {"factors": "ab"},
    {"factors": "ab", "static_rank": 2},
]


def model_of(family: str = "llama", **options: Any) -> VLoRAForConditionalGeneration:
    return shared_model(family, **({"targets": MERGEABLE} | options))


@torch.no_grad()
def seen(model: VLoRAForConditionalGeneration, *seeds: int) -> PerceptualWeights:
    """Weights of one image, or of several composed."""
    return model.expand(model.perceive(torch.cat([images(1, seed) for seed in seeds]))).composed()


def adapter(model: VLoRAForConditionalGeneration, *seeds: int) -> Adapter:
    return adapter_of(seen(model, *seeds), base_of(model))


def in_peft(model: VLoRAForConditionalGeneration, **adapters: Adapter) -> Any:
    """The plain language model, with one adapter or several of them."""
    adapted: Any = None
    for name, one in adapters.items():
        config = LoraConfig(**lora_config(one))
        if adapted is None:
            adapted = get_peft_model(plain_llm(model), config, adapter_name=name)  # type: ignore[arg-type]
        else:
            adapted.add_adapter(name, config)
        loaded = set_peft_model_state_dict(adapted, state_dict(one), adapter_name=name)
        assert not loaded.unexpected_keys
        assert not [key for key in loaded.missing_keys if f".{name}." in key]
    return adapted.eval()


@torch.no_grad()
def check(found: Tensor, model: VLoRAForConditionalGeneration, weights: PerceptualWeights) -> None:
    expected = model(input_ids=IDS, perceptual_weights=weights).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (model(input_ids=IDS).logits - expected).abs().max() > 0.05


@pytest.mark.parametrize("options", [*KINDS, {"targets": ("k", "v"), "layers": (2,)}], ids=str)
@torch.no_grad()
def test_every_kind_of_generator(options: dict[str, Any]) -> None:
    model = model_of(**options)
    check(in_peft(model, default=adapter(model, 1))(input_ids=IDS).logits, model, seen(model, 1))


@pytest.mark.parametrize("family", SUPPORTED)
@torch.no_grad()
def test_every_family(family: str) -> None:
    model = model_of(family)  # with two key-value heads for four heads
    check(in_peft(model, default=adapter(model, 1))(input_ids=IDS).logits, model, seen(model, 1))


@pytest.mark.parametrize("options", COMPOSED, ids=str)
@torch.no_grad()
def test_composed_images(options: dict[str, Any]) -> None:
    model = model_of(**options)
    check(in_peft(model, default=adapter(model, 1, 2, 3))(input_ids=IDS).logits, model, seen(model, 1, 2, 3))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@torch.no_grad()
def test_merged_for_good(family: str) -> None:
    model = model_of(family)
    check(in_peft(model, default=adapter(model, 1)).merge_and_unload()(input_ids=IDS).logits, model, seen(model, 1))


@pytest.mark.parametrize(
    "options", [{}, {"factors": "b", "static_rank": 2}, {"factors": "ab", "static_rank": 2}], ids=str
)
@torch.no_grad()
def test_several_images_in_one_batch(options: dict[str, Any]) -> None:
    model = model_of(**options)
    adapted = in_peft(model, red=adapter(model, 1), blue=adapter(model, 2), both=adapter(model, 1, 2))
    rows = {"blue": seen(model, 2), "__base__": None, "red": seen(model, 1), "both": seen(model, 1, 2)}
    logits = adapted(input_ids=IDS.expand(len(rows), -1), adapter_names=list(rows)).logits
    for found, weights in zip(logits.split(1), rows.values(), strict=True):
        if weights is None:
            torch.testing.assert_close(found, model(input_ids=IDS).logits, rtol=0, atol=1e-4)
        else:
            check(found, model, weights)


@pytest.mark.parametrize("options", [{}, {"factors": "b"}, {"factors": "ab"}], ids=str)
@torch.no_grad()
def test_swapped_from_memory(options: dict[str, Any]) -> None:
    model = model_of(**options)
    adapted = in_peft(model, default=adapter(model, 1))
    check(adapted(input_ids=IDS).logits, model, seen(model, 1))
    for seeds in ((2,), (2, 3), (1,)):  # composed ones may have another rank
        another = adapter(model, *seeds)
        hotswap_adapter_from_state_dict(
            adapted, state_dict(another, name="default"), "default", LoraConfig(**lora_config(another))
        )
        check(adapted(input_ids=IDS).logits, model, seen(model, *seeds))
