"""One image merged into the matrices, and taken out again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import KINDS, images, tiny_model, token_ids
from vlora.errors import InputError, UnsupportedModel
from vlora.model import PerceptualWeights, VLoRAForConditionalGeneration
from vlora.model.weights import MERGEABLE


def _seen(model: VLoRAForConditionalGeneration, count: int = 1) -> PerceptualWeights:
    with torch.no_grad():
        return model.expand(model.perceive(images(count).to(model.device)))


@pytest.mark.parametrize("options", KINDS, ids=str)
@torch.no_grad()
def test_a_merged_model_sees_and_an_unmerged_one_is_what_it_was(options: dict[str, Any], device: str) -> None:
    model, ids = tiny_model(targets=MERGEABLE, **options).to(device), token_ids(3, 9).to(device)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bare, worn = model(input_ids=ids).logits, model(input_ids=ids, perceptual_weights=_seen(model)).logits

    model.merge(_seen(model))
    torch.testing.assert_close(model(input_ids=ids).logits, worn, rtol=1e-4, atol=1e-4)
    model.unmerge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(input_ids=ids).logits, bare)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_in_half_precision_too_nothing_is_lost(dtype: torch.dtype) -> None:
    model = tiny_model(targets=MERGEABLE)
    model.model.language_model.to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.merge(_seen(model))
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) == len(MERGEABLE) * 2
    model.unmerge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_what_is_worn_comes_on_top() -> None:
    model, ids = tiny_model(targets=MERGEABLE), token_ids(1, 9)
    weights = _seen(model, 2)
    both = model(input_ids=ids, perceptual_weights=weights.composed()).logits
    model.merge(weights[0])
    torch.testing.assert_close(model(input_ids=ids, perceptual_weights=weights[1]).logits, both, rtol=1e-4, atol=1e-4)
    model.unmerge()
    model.merge(weights.composed())
    torch.testing.assert_close(model(input_ids=ids).logits, both, rtol=1e-4, atol=1e-4)


def test_a_bypass_is_refused_and_nothing_is_changed() -> None:
    model = tiny_model()  # all targets, `mlp` the last of them
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UnsupportedModel, match=r"'mlp' is a bypass .* which no matrix can take up: wear these weights"):
        model.merge(_seen(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match="nothing to unmerge"):
        model.unmerge()


def test_a_quantised_linear_is_refused() -> None:
    model = tiny_model(targets=("q", "down"))
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    weights = _seen(model)
    quantize_(model.model.language_model, Int8WeightOnlyConfig())
    with pytest.raises(UnsupportedModel, match=r"'layers.1.self_attn.q_proj' \(Linear\) is quantised or wrapped"):
        model.merge(weights)


def test_a_wrapped_linear_is_refused() -> None:
    model = tiny_model(targets=("down",))
    weights = _seen(model)
    mlp = model.model.language_model.layers[1].mlp
    mlp.down_proj = nn.Sequential(mlp.down_proj)
    with pytest.raises(UnsupportedModel, match=r"'layers.1.mlp.down_proj' \(Sequential\) is quantised or wrapped"):
        model.merge(weights)


def test_what_cannot_be_merged_is_refused() -> None:
    model = tiny_model(targets=("q",))
    with pytest.raises(InputError, match=r"hold 2: pick one, as in weights\[0\], or make them one by weights.composed"):
        model.merge(_seen(model, 2))
    with pytest.raises(InputError, match="belong to another model"):
        model.merge(_seen(tiny_model(targets=("v",))))
    model.merge(_seen(model))
    with pytest.raises(InputError, match="has an image merged into it already: unmerge it first"):
        model.merge(_seen(model))
