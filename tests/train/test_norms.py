"""Norms in one kernel compute what transformers' do."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import tiny_llm
from vlora.train.norms import fuse_norms


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_equal_to_the_bit_in_float32(family: str) -> None:
    model = tiny_llm(family).eval()
    for parameter in model.parameters():  # weights of norms begin as ones
        parameter.data = torch.randn_like(parameter) * 0.1 + (parameter.ndim == 1)
    ids = torch.arange(12).view(2, 6)
    expected = model(ids).logits
    assert fuse_norms(model) >= 2 * model.config.num_hidden_layers + 1
    torch.testing.assert_close(model(ids).logits, expected, atol=0, rtol=0)


def test_gemma_adds_one_to_its_weights_and_is_left_alone() -> None:
    assert fuse_norms(tiny_llm("gemma")) == 0


def test_other_precision_than_that_of_the_weights() -> None:
    model = tiny_llm("llama")
    norm = model.model.norm
    x = torch.randn(3, model.config.hidden_size, dtype=torch.bfloat16)
    expected = norm(x)
    fuse_norms(model)
    torch.testing.assert_close(norm(x), expected, atol=0, rtol=0)
