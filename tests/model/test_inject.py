"""What can wear weights and what cannot; precisions; compiled decoding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, StaticCache

from tests.helpers import (
    images,
    plain_llm,
    shared_model,
    tiny_generator_config,
    tiny_llm,
    tiny_model,
    tiny_vision,
    token_ids,
)
from vlora.errors import UnsupportedModel
from vlora.model import VLoRAConfig, VLoRAModel
from vlora.model.assemble import assemble
from vlora.model.inject import SUPPORTED, Wearer, check_supported, find_places
from vlora.model.weights import TARGETS


@pytest.mark.parametrize("family", SUPPORTED)
def test_shapes_come_from_the_real_linears(family: str) -> None:
    llm = tiny_llm(family)
    places = find_places(llm.model, TARGETS, (0, 3))
    size = llm.config.num_attention_heads * llm.model.layers[0].self_attn.head_dim
    assert [place.layer for place in places] == [0] * 8 + [3] * 8
    assert {place.target: place[2:] for place in places} == {
        "q": (48, size),
        "k": (48, size // 2),
        "v": (48, size // 2),
        "o": (size, 48),
        "gate": (48, 80),
        "up": (48, 80),
        "down": (80, 48),
        "mlp": (48, 48),
    }


def test_another_family_is_refused_wherever_it_comes_in() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20))
    message = f"'gpt2' cannot wear perceptual weights; choose one of these families: {', '.join(SUPPORTED)}"
    with pytest.raises(UnsupportedModel, match=message):
        check_supported("gpt2")
    with pytest.raises(UnsupportedModel, match=message):
        find_places(gpt2.transformer, ("q",), (0,))
    with pytest.raises(UnsupportedModel, match=message):
        Wearer(gpt2.transformer)
    with pytest.raises(UnsupportedModel, match=message):
        assemble(causal_lm=gpt2, vision_tower=tiny_vision(), generator=tiny_generator_config())
    with pytest.raises(UnsupportedModel, match=message):
        VLoRAModel(VLoRAConfig(text_config=gpt2.config, vision_config=tiny_vision().config))


@pytest.mark.parametrize(("target", "name"), [("k", "self_attn.k_proj"), ("gate", "mlp.gate_proj")])
def test_a_missing_linear_is_named(target: str, name: str) -> None:
    llm = tiny_llm().model
    parent, child = name.split(".")
    delattr(llm.layers[1].get_submodule(parent), child)
    assert len(find_places(llm, (target,), (0, 2, 3))) == 3
    with pytest.raises(UnsupportedModel, match=f"LlamaModel has no linear layer {name!r} in decoder block 1"):
        find_places(llm, (target,), (0, 1))


@torch.no_grad()
def test_a_bfloat16_language_model_with_a_float32_generator() -> None:
    model = tiny_model()
    ids, pixels, index = token_ids(3, 8), images(2), torch.tensor([0, 1, -1])
    exact = model(input_ids=ids, pixel_values=pixels, image_index=index).logits
    model.model.language_model.to(torch.bfloat16)
    model.lm_head.to(torch.bfloat16)

    weights = model.expand(model.perceive(pixels))
    out = model(input_ids=ids, pixel_values=pixels, image_index=index)
    assert weights.values.dtype == out.perceptual_weights.dtype == torch.float32
    assert out.logits.dtype == torch.bfloat16
    assert (out.logits.float() - exact).abs().mean() < 0.1 * exact.std()
    bare = plain_llm(model)(input_ids=ids).logits
    assert bare.dtype == torch.bfloat16
    assert torch.equal(out.logits[2], bare[2])

    half = model(input_ids=ids[:2], perceptual_weights=weights.to(torch.bfloat16).values).logits
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact[:2]).abs().mean() < 0.1 * exact.std()


@torch.no_grad()
def test_a_model_all_in_bfloat16() -> None:
    model = tiny_model()
    ids, pixels = token_ids(2, 8), images(2)
    exact = model(input_ids=ids, pixel_values=pixels).logits
    model.to(torch.bfloat16)
    logits = model(input_ids=ids, pixel_values=pixels).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).abs().mean() < 0.2 * exact.std()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@torch.no_grad()
def test_compiled_decoding_equals_eager(cache: str) -> None:
    model, ids = shared_model(), token_ids(2, 6)
    rows = model.expand(model.perceive(images(2))).rows(torch.tensor([1, -1])).values

    def decode(step: Any) -> list[torch.Tensor]:
        config = model.config.text_config
        kept = StaticCache(config=config, max_cache_len=16) if cache == "static" else DynamicCache(config=config)
        out = model(input_ids=ids, perceptual_weights=rows, past_key_values=kept, use_cache=True)
        logits = [out.logits[:, -1:]]
        for _ in range(3):
            token = logits[-1].argmax(-1)
            logits.append(step(input_ids=token, perceptual_weights=rows, past_key_values=kept, use_cache=True).logits)
        return logits

    torch.compiler.reset()
    compiled = decode(torch.compile(model, fullgraph=True, backend="eager"))
    for one, other in zip(compiled, decode(model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


@torch.no_grad()
def test_a_deep_copy_wears_too() -> None:
    model, ids = shared_model(), token_ids(1, 6)
    twin = copy.deepcopy(model)
    expected = model(input_ids=ids, pixel_values=images(1)).logits
    assert torch.equal(twin(input_ids=ids, pixel_values=images(1)).logits, expected)
    assert not torch.equal(twin(input_ids=ids).logits, expected)
