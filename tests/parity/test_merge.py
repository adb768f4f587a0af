"""(b) Wearing an image equals a language model into whose matrices the image was merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import KINDS, images, merge, only, plain_llm, shared_model, tiny_model, token_ids
from vlora.model import VLoRAForConditionalGeneration
from vlora.model.inject import SUPPORTED
from vlora.model.weights import MERGEABLE, PerceptualWeights


@pytest.mark.parametrize("family", SUPPORTED)
@torch.no_grad()
def test_all_mergeable_targets_together(family: str) -> None:
    _assert_merged(shared_model(family), MERGEABLE)


@pytest.mark.parametrize("target", MERGEABLE)
@pytest.mark.parametrize("family", SUPPORTED)
@torch.no_grad()
def test_each_mergeable_target_alone(family: str, target: str) -> None:
    _assert_merged(shared_model(family), (target,))


@pytest.mark.parametrize(
    "options",
    [
        {"targets": ("k",), "layers": (2,), "rank": 1},
        {"targets": ("q", "v"), "layers": (0,)},
        {"targets": ("k", "o", "down"), "layers": (0, 1, 2, 3), "rank": 16},
        {"targets": MERGEABLE, "static_rank": 3, "norms": True, "queries": "joint"},
        {"targets": ("v", "up"), "vision": "efficientnet"},
        {"targets": ("k", "v", "o"), "alpha": 0.5, "kv_heads": 1},
        *({"targets": MERGEABLE, **kind} for kind in KINDS[3:]),
    ],
)
@torch.no_grad()
def test_every_option_merges(options: dict[str, Any]) -> None:
    _assert_merged(tiny_model(**options), options["targets"])


@pytest.mark.parametrize("family", SUPPORTED)
@torch.no_grad()
def test_the_mlp_bypass(family: str) -> None:
    model = shared_model(family)
    ids = token_ids(1, 9)
    weights = only(model.expand(model.perceive(images(1))), "mlp")
    plain = plain_llm(model)
    for layer in weights.layout.sites_of:
        block = plain.model.layers[layer]
        block.mlp = _Bypassed(block.mlp, weights, layer)
    expected = plain(input_ids=ids).logits
    worn = model(input_ids=ids, perceptual_weights=weights).logits
    torch.testing.assert_close(worn, expected, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-2)


class _Bypassed(nn.Module):
    """mlp(x) + scale · (x A) B."""

    def __init__(self, mlp: nn.Module, weights: PerceptualWeights, layer: int) -> None:
        super().__init__()
        a, self.b = weights.factors(layer, "mlp")
        self.mlp, self.a, self.scale = mlp, a[0], weights.layout.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) + self.scale * (x @ self.a) @ self.b


def _assert_merged(model: VLoRAForConditionalGeneration, targets: Sequence[str]) -> None:
    ids = token_ids(1, 9)
    weights = only(model.expand(model.perceive(images(1))), *targets)
    expected = merge(plain_llm(model), weights)(input_ids=ids).logits
    worn = model(input_ids=ids, perceptual_weights=weights).logits
    torch.testing.assert_close(worn, expected, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-3)
