"""(e) As an adapter in `peft`, one image gives the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.helpers import KINDS, images, plain_llm, shared_model, token_ids
from vlora.model.inject import MODULE_OF
from vlora.model.weights import MERGEABLE


@pytest.mark.parametrize("options", [*KINDS, {"targets": ("k", "v"), "layers": (2,)}], ids=str)
@torch.no_grad()
def test_the_factors_are_those_of_a_lora_adapter(options: dict[str, Any]) -> None:
    model, ids = shared_model(**({"targets": MERGEABLE} | options)), token_ids(1, 9)
    weights = model.expand(model.perceive(images(1)))
    layout = weights.layout
    config = LoraConfig(
        r=layout.rank,
        lora_alpha=layout.scale * layout.rank,
        target_modules=[MODULE_OF[target].split(".")[1] for target in {place.target for place in layout.places}],
        layers_to_transform=sorted(layout.sites_of),
    )
    adapted = get_peft_model(plain_llm(model), config)
    for layer, target in layout.place_of:
        a, b = weights.factors(layer, target)
        linear = adapted.base_model.model.model.layers[layer].get_submodule(MODULE_OF[target])
        linear.lora_A["default"].weight.copy_(a[0].T)
        linear.lora_B["default"].weight.copy_((b if b.ndim == 2 else b[0]).T)
    expected = model(input_ids=ids, perceptual_weights=weights).logits
    torch.testing.assert_close(adapted.eval()(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert (model(input_ids=ids).logits - expected).abs().max() > 0.05
