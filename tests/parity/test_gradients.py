"""(f) The whole generator learns, what is frozen does not, and checkpointing changes no gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import KINDS, checkpoint_gradients, images, padded, tiny_model, token_ids
from vlora.model import VLoRAForConditionalGeneration
from vlora.model.inject import SUPPORTED

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # a frozen vision encoder


def _train(
    model: VLoRAForConditionalGeneration, *, reentrant: bool | None, trained: str, seeds: tuple[int, ...] = (1,)
) -> dict[str, Tensor | None]:
    """Gradients by name after one backward pass over texts with their own images, one with none.

    Args:
        model: left with the gradients.
        reentrant: form of gradient checkpointing; None for none.
        trained: beginnings of the names of the trained parts, parted by spaces.
        seeds: one forward pass for each, then one backward pass for all.
    """
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.removeprefix("model.").startswith(tuple(trained.split())))
    if reentrant is not None:
        checkpoint_gradients(model, reentrant=reentrant)
    batch = padded([token_ids(1, length, seed=length)[0] for length in (6, 9, 4)], "left")
    labels = batch["input_ids"].where(batch["attention_mask"].bool(), -100)
    index = torch.tensor([1, 0, -1])
    losses = [
        model(**batch, pixel_values=images(2, seed), image_index=index, labels=labels, use_cache=False).loss
        for seed in seeds
    ]
    torch.stack(losses).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _assert_same(given: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    for name, gradient in expected.items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_generator_learns_and_nothing_else(options: dict[str, Any], reentrant: bool | None) -> None:
    gradients = _train(tiny_model(**options), reentrant=reentrant, trained="generator")
    for name, gradient in gradients.items():
        if not name.startswith("model.generator."):
            assert gradient is None, name
        elif name.endswith("k_proj.bias"):  # softmax does not see what is added to all scores alike
            assert gradient is not None
            assert gradient.abs().max() < 1e-5, name
        else:
            assert gradient is not None, name
            assert gradient.any(), name


def test_a_fresh_generator_learns_its_b_first() -> None:
    gradients = _train(tiny_model(noise=0), reentrant=None, trained="generator")
    for name, gradient in gradients.items():
        if name.startswith("model.generator."):
            assert gradient is not None, name
            assert gradient.any() == name.startswith("model.generator.b."), name


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "trained", ["generator", "generator language_model lm_head", "generator language_model lm_head vision_tower"]
)
def test_checkpointing_changes_no_gradient(trained: str, reentrant: bool) -> None:
    expected = _train(tiny_model(), reentrant=None, trained=trained)
    _assert_same(_train(tiny_model(), reentrant=reentrant, trained=trained), expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", KINDS[1:], ids=str)
def test_nor_does_it_for_any_kind_of_generator(options: dict[str, Any], reentrant: bool) -> None:
    expected = _train(tiny_model(**options), reentrant=None, trained="generator")
    _assert_same(_train(tiny_model(**options), reentrant=reentrant, trained="generator"), expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", [family for family in SUPPORTED if family != "llama"])
def test_nor_in_any_family(family: str, reentrant: bool) -> None:
    options: dict[str, Any] = {"targets": ("q", "down", "mlp")}
    expected = _train(tiny_model(family, **options), reentrant=None, trained="generator")
    _assert_same(_train(tiny_model(family, **options), reentrant=reentrant, trained="generator"), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_passes_before_one_backward_keep_their_images(reentrant: bool) -> None:
    expected = _train(tiny_model(), reentrant=None, trained="generator", seeds=(1, 2))
    _assert_same(_train(tiny_model(), reentrant=reentrant, trained="generator", seeds=(1, 2)), expected)


def test_gradients_are_those_of_merged_weights() -> None:
    """A gradient reaches A and B as if ΔW had been a part of the matrix."""
    model = tiny_model(targets=("q", "down"))
    ids = token_ids(1, 7)
    weights = model.expand(model.perceive(images(1)))
    model(input_ids=ids, perceptual_weights=weights, labels=ids).loss.backward()
    own = {name: p.grad.clone() for name, p in model.model.generator.named_parameters() if p.grad is not None}

    model.zero_grad()
    weights = model.expand(model.perceive(images(1)))
    names = {"q": "self_attn.q_proj", "down": "mlp.down_proj"}
    merged = {
        f"model.language_model.layers.{layer}.{names[target]}.weight": model.get_parameter(
            f"model.language_model.layers.{layer}.{names[target]}.weight"
        ).detach()
        + weights.delta(layer, target)[0].T
        for layer, target in weights.layout.place_of
    }
    torch.func.functional_call(model, merged, kwargs={"input_ids": ids, "labels": ids}).loss.backward()
    for name, parameter in model.model.generator.named_parameters():
        torch.testing.assert_close(own[name], parameter.grad, rtol=1e-4, atol=1e-6)
