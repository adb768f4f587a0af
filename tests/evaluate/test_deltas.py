"""Norms and ranks from the factors equal those of the dense matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import images, tiny_model
from vlora.api import Eyes
from vlora.evaluate.deltas import effective_rank, measure, singular_values, stable_rank
from vlora.model import VisualParameters
from vlora.model.inject import MODULE_OF


@pytest.mark.parametrize(("in_dim", "rank", "out_dim"), [(12, 3, 7), (5, 5, 5), (2, 4, 9), (9, 4, 2)])
def test_singular_values(in_dim: int, rank: int, out_dim: int) -> None:
    a, b = torch.randn(in_dim, rank), torch.randn(rank, out_dim)
    dense = torch.linalg.svdvals((a @ b).double())
    values = singular_values(a, b)
    torch.testing.assert_close(values[: len(dense)], dense[: len(values)], rtol=1e-5, atol=1e-5)


def test_ranks() -> None:
    same = torch.tensor([2.0, 2.0, 2.0])
    assert stable_rank(same) == pytest.approx(3)
    assert effective_rank(same) == pytest.approx(3)
    one = torch.tensor([5.0, 0.0, 0.0])
    assert stable_rank(one) == effective_rank(one) == pytest.approx(1)
    assert stable_rank(torch.zeros(3)) == effective_rank(torch.zeros(3)) == 0
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(
        np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    )


def test_measure(eyes: Eyes) -> None:
    with torch.inference_mode():
        weights = eyes.model.expand(eyes.perceive(Image.effect_noise((20, 20), 60)))
    llm = eyes.model.model.language_model
    deltas = measure(weights, llm)
    assert [(d.layer, d.target) for d in deltas] == [(n, t) for n in (0, 1) for t in ("q", "v", "mlp")]
    for delta in deltas:
        with torch.inference_mode():
            dense = weights.delta(delta.layer, delta.target)[0]
        assert delta.norm == pytest.approx(float(dense.norm()), rel=1e-4)
        if delta.target == "mlp":
            assert delta.relative_norm is None
        else:
            base = llm.get_submodule(f"layers.{delta.layer}.{MODULE_OF[delta.target]}").weight.detach()
            assert delta.relative_norm == pytest.approx(float(dense.norm() / base.norm()), rel=1e-4)
        assert delta.stable_rank == pytest.approx(
            float(dense.norm() ** 2 / torch.linalg.matrix_norm(dense, 2) ** 2), rel=1e-4
        )


@pytest.mark.parametrize(
    "kind", [{"factors": "b"}, {"factors": "ab"}, {"factors": "ab", "static_rank": 2}, {"static_rank": 2}]
)
def test_either_kind_of_b_and_several_images(kind: dict[str, Any]) -> None:
    model = tiny_model(**kind)
    with torch.inference_mode():
        weights = model.expand(model.perceive(images(2)))
        for given in (weights[1], weights.composed()):
            for delta in measure(given, model.model.language_model):
                values = torch.linalg.svdvals(given.delta(delta.layer, delta.target)[0].double())
                assert delta.norm == pytest.approx(float(values.norm()), rel=1e-4)
                assert delta.effective_rank == pytest.approx(effective_rank(values), rel=1e-3)


def test_damaged_weights_are_measured_as_not_a_number() -> None:
    weights = tiny_model().expand(VisualParameters(torch.full((1, 8, 2, 16), torch.nan)))
    for delta in measure(weights, tiny_model().model.language_model):
        assert np.isnan([delta.norm, delta.stable_rank, delta.effective_rank]).all()
    infinite = torch.tensor([[np.inf, 1.0], [0.0, 1.0]])
    assert singular_values(infinite, torch.eye(2)).isnan().all()
