"""Ours and the recipe do the same work: the same loss and gradients, on one batch, in the precision of what learns."""

from __future__ import annotations

from typing import Any

import torch

from vlora.train.learner import Learner

from .recipe import Recipe
from .ways import our_loss

TOLERANCE = 1e-3
"""Of a gradient, in the Frobenius norm: float32 sums of some thousand terms in another order, through 30 blocks."""


def check(learner: Learner, reference: Recipe, batch: dict[str, Any], *, rows: int) -> dict[str, float]:
    """Compare loss and gradients of the generator; leave no gradients behind.

    Args:
        learner: ours.
        reference: with the same weights.
        batch: one text an image.
        rows: how many of its rows are used.

    Returns:
        The relative difference of the losses, and the largest relative difference of a parameter's gradient.

    Raises:
        SystemExit: they differ.
    """
    part = {name: value[:rows] for name, value in batch.items() if name != "seen"}
    before = next(learner.language_model.parameters()).dtype
    for model in (learner.model, reference.model):
        _frozen_in(model, next(learner.bridge.parameters()).dtype)
    ours, plain = our_loss(learner, part), reference(part)
    ours.backward()
    plain.backward()
    loss = abs(float(ours.detach()) - float(plain.detach())) / float(plain.detach())
    gradients = max(_differences(learner, reference))
    for model in (learner.model, reference.model):
        model.zero_grad()
        _frozen_in(model, before)
    if not (loss < TOLERANCE and gradients < TOLERANCE):
        raise SystemExit(f"Ours and the recipe differ: loss by {loss:.1e}, gradients by {gradients:.1e}; time neither.")
    return {"loss": loss, "gradients": gradients, "tolerance": TOLERANCE}


def _differences(learner: Learner, reference: Recipe) -> list[float]:
    others = dict(reference.model.model.generator.named_parameters())
    pairs = [(name, parameter.grad, others[name].grad) for name, parameter in learner.bridge.named_parameters()]
    for name, own, other in pairs:
        if own is None or other is None:
            raise SystemExit(f"Ours and the recipe differ: {name} has no gradient in one of them; time neither.")
    # A bias of keys moves all scores of a query alike: its gradient is zero but for rounding.
    return [
        float((own - other).norm() / other.norm()) for name, own, other in pairs if not name.endswith("k_proj.bias")
    ]


def _frozen_in(model: Any, dtype: torch.dtype) -> None:
    """A frozen language model to a higher precision and back again loses nothing."""
    for parameter in [*model.model.language_model.parameters(), *model.lm_head.parameters()]:
        parameter.data = parameter.data.to(dtype)
