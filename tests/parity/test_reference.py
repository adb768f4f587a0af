"""(h) The batched path agrees with a slow loop written from the formulas (`reference.py`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import KINDS, images, tiny_model, token_ids
from tests.parity.reference import reference_factors, reference_logits
from vlora.model.weights import TARGETS

ALL = {"targets": TARGETS}
PAPER = {"targets": ("q", "k", "v", "o", "mlp")}
SWEEP: list[dict[str, Any]] = [
    *({**PAPER, "rank": rank, "kv_heads": kv} for rank, kv in ((1, 1), (1, 4), (4, 2), (16, 1), (16, 4))),
    *({"targets": (target,)} for target in TARGETS),
    *({**PAPER, "layers": layers} for layers in ((2,), (0, 3), (0, 1, 2, 3))),
    {**PAPER, "layers": None, "layer_step": 2},
    {**ALL, "queries": "joint"},
    {**ALL, "static_rank": 2},
    {**ALL, "factors": "b"},
    {**ALL, "norms": True},
    {**ALL, "norms": True, "static_rank": 3, "queries": "joint", "rank": 1, "alpha": 1.5, "kv_heads": 1},
    *({**ALL, **kind} for kind in KINDS[3:]),
    {**PAPER, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "alpha": 1.0},
]


def _name(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={''.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in options.items())


@pytest.mark.parametrize("options", SWEEP, ids=_name)
@torch.no_grad()
def test_the_batched_path_is_the_formula(options: dict[str, Any]) -> None:
    model = tiny_model(**options)
    pixels, ids = images(2), token_ids(2, 5)
    weights = model.expand(model.perceive(pixels))
    logits = model(input_ids=ids, pixel_values=pixels).logits
    for sample in range(2):
        factors = reference_factors(model, pixels[sample])
        assert factors.keys() == weights.layout.place_of.keys()
        for place, (a, b) in factors.items():
            own_a, own_b = weights[sample].pair(*place)
            _assert_close(own_a, a)
            _assert_close(own_b, b)
        _assert_close(logits[sample], reference_logits(model, pixels[sample], ids[sample]))


def _assert_close(values: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the largest."""
    assert values.shape == expected.shape
    error = ((values - expected).abs().max() / expected.abs().max()).item()
    assert error <= 1e-5
