"""Perceptual weights added to the matrices themselves, and taken out again bit for bit.

A merged model sees one image at the speed of the plain language model, in every row, until it is unmerged. Wearing
is the normal case: it serves a batch of different images, and loses nothing to the rounding of the matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError, UnsupportedModel
from .inject import MODULE_OF
from .weights import MERGEABLE, PerceptualWeights


@torch.no_grad()
def merge(language_model: nn.Module, weights: PerceptualWeights) -> dict[str, Tensor]:
    """W + ΔW in place of W, for every place of one sample.

    Args:
        language_model: the decoder without its head.
        weights: of one image, or of several composed.

    Returns:
        What stood there, by the name of the linear layer, for `unmerge`.

    Raises:
        InputError: more than one sample.
        UnsupportedModel: a target or a layer that is no plain matrix; nothing has been changed then.
    """
    if len(weights) != 1:
        raise InputError(
            f"One matrix can take up one sample; these perceptual weights hold {len(weights)}: pick one, as in "
            "weights[0], or make them one by weights.composed()."
        )
    linears = {place: _mergeable(language_model, *place) for place in weights.layout.place_of}
    originals: dict[str, Tensor] = {}
    for place, (name, linear) in linears.items():
        originals[name] = linear.weight.detach().clone()
        delta = weights.delta(*place)[0].mT.to(linear.weight.device)
        # Added in the higher of both precisions and rounded once.
        linear.weight.copy_(linear.weight.to(torch.promote_types(delta.dtype, linear.weight.dtype)) + delta)
    return originals


@torch.no_grad()
def unmerge(language_model: nn.Module, originals: dict[str, Tensor]) -> None:
    """Put back what `merge` returned."""
    for name, weight in originals.items():
        language_model.get_submodule(name).weight.copy_(weight)  # type: ignore[union-attr]


def _mergeable(language_model: nn.Module, layer: int, target: str) -> tuple[str, nn.Linear]:
    if target not in MERGEABLE:
        raise UnsupportedModel(
            f"The target {target!r} is a bypass from the MLP's input to its output, which no matrix can take up: wear "
            f"these weights instead, or train a generator on targets that are matrices ({', '.join(MERGEABLE)})."
        )
    name = f"layers.{layer}.{MODULE_OF[target]}"
    linear = language_model.get_submodule(name)
    weight = getattr(linear, "weight", None)
    plain = type(linear) is nn.Linear and weight is not None and type(weight.data) is Tensor  # type: ignore[union-attr]
    if not plain or not weight.is_floating_point():  # type: ignore[union-attr,operator]
        raise UnsupportedModel(
            f"The linear layer {name!r} ({type(linear).__name__}) is quantised or wrapped, and cannot take up a ΔW: "
            "wear the weights instead, or load the language model in a floating-point precision, without an adapter."
        )
    return name, linear  # type: ignore[return-value]
