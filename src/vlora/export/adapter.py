"""One image, or several composed, as a LoRA adapter of one language model: what every form of it is written from.

    PerceptualWeights of one row ─► Adapter ─┬─► peft.py   folder, or tensors and configuration   (peft, vLLM, SGLang)
                                             └─► gguf.py   file, or bytes in memory               (llama.cpp)

An adapter is the perceptual weights themselves, in the names and the orientation of others: `lora_A` is A turned
round, `[rank, in_dim]`, `lora_B` is B turned round, `[out_dim, rank]`, and `lora_alpha / r` is the scale.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError, UnsupportedModel
from ..model import VLoRAForConditionalGeneration
from ..model.assemble import fingerprint
from ..model.inject import find_places
from ..model.weights import MERGEABLE, PerceptualWeights, Place

# Engines read each of these in one matrix product.
FUSED = (("q", "k", "v"), ("gate", "up"))
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Base:
    """The language model that an adapter belongs to.

    Args:
        fingerprint: of its decoder, see `vlora.model.assemble.fingerprint`.
        family: its `model_type` in transformers.
        heads: attention heads.
        kv_heads: key-value heads.
        widths: out_dim of the matrices that engines fuse, `FUSED`.
        name: a hub id or a folder, if known.
        form: which weights of that name exactly, where there are several.
    """

    fingerprint: str
    family: str
    heads: int
    kv_heads: int
    widths: Mapping[str, int]
    name: str | None = None
    form: str | None = None


@dataclass(frozen=True)
class Origin:
    """What an adapter was made from.

    Args:
        kind: `pixels`, decoded; or `visual parameters` or `perceptual weights`, if the image itself was not given.
        sha256: of them.
    """

    kind: str
    sha256: str


@dataclass(frozen=True)
class Adapter:
    """One image, or several composed, as a LoRA adapter. Made by `adapter_of`.

    Args:
        weights: of one row.
        base: the language model it belongs to.
        images: what it was made from.
    """

    weights: PerceptualWeights
    base: Base
    images: tuple[Origin, ...] = ()

    @property
    def rank(self) -> int:
        """Columns of each A."""
        return self.weights.layout.rank

    @property
    def alpha(self) -> float:
        """`lora_alpha`: the scale is this over the rank; a whole number, if it is one but for rounding."""
        alpha = self.weights.layout.scale * self.weights.layout.rank
        return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Decoder blocks that have weights, in their order."""
        return tuple(self.weights.layout.sites_of)

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Targets that have weights, in the canonical order."""
        used = {place.target for place in self.weights.layout.places}
        return tuple(target for target in MERGEABLE if target in used)

    @property
    def numel(self) -> int:
        """Numbers in all A and B."""
        return sum(self.rank * (place.in_dim + place.out_dim) for place in self.weights.layout.places)

    def pair(self, layer: int, target: str) -> tuple[Tensor, Tensor]:
        """`lora_A` `[rank, in_dim]` and `lora_B` `[out_dim, rank]`, views."""
        a, b = self.weights.pair(layer, target)
        return a.mT, b.mT


def base_of(model: VLoRAForConditionalGeneration, *, name: str | None = None, form: str | None = None) -> Base:
    """The identity of a model's language model; takes milliseconds, and need not be taken for each image.

    Args:
        model: the model.
        name: a hub id or a folder of its language model, if known.
        form: which weights of that name exactly, where there are several.

    Raises:
        InputError: an image is merged into it.
    """
    if model.model.is_merged:
        raise InputError(
            "An image is merged into this model, whose matrices are not those of its base: unmerge it first."
        )
    text = model.config.text_config
    places = find_places(model.model.language_model, [target for group in FUSED for target in group], [0])
    return Base(
        fingerprint=fingerprint(model.model.language_model),
        family=text.model_type,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        widths={place.target: place.out_dim for place in places},
        name=name,
        form=form,
    )


def adapter_of(weights: PerceptualWeights, base: Base, *, images: Sequence[Origin] = ()) -> Adapter:
    """Perceptual weights as an adapter.

    Args:
        weights: of one image, or of several composed.
        base: see `base_of`.
        images: what they were made from.

    Raises:
        InputError: not one sample.
        UnsupportedModel: a target that no adapter has a place for.
    """
    if len(weights) != 1:
        raise InputError(
            f"One adapter holds one sample; these perceptual weights hold {len(weights)}: pick one, as in weights[0], "
            "or make them one by weights.composed()."
        )
    if any(place.target not in MERGEABLE for place in weights.layout.places):
        raise UnsupportedModel(
            "This model uses the target 'mlp', a bypass from the MLP's input to its output, which LoRA has no place "
            "for, and without it the answers would be others: train a generator with the targets gate, up and down in "
            "its place."
        )
    kept = weights.to("cpu")
    if not kept.values.isfinite().all():
        raise InputError(
            "These perceptual weights are not finite: the model, or the image in its precision, is broken."
        )
    # Out of inference mode, so that peft may use these tensors in whatever way it likes.
    values, shared = kept.values.detach().clone(), {place: x.detach() for place, x in kept.shared.items()}
    return Adapter(PerceptualWeights(values, kept.layout, shared), base, tuple(images))


def completed(adapter: Adapter) -> Adapter:
    """The same adapter with a ΔW of zero for each matrix that an engine fuses with one of its targets.

    SGLang takes q, k and v together, and gate and up together, and stumbles over an adapter that has only some of them.
    """
    layout = adapter.weights.layout
    missing = [target for group in FUSED if set(group) & set(adapter.targets) for target in group]
    missing = [target for target in missing if target not in adapter.targets]
    if not missing:
        return adapter
    fused = {target: group for group in FUSED for target in group}
    places = list(layout.places)
    for layer in adapter.layers:
        for target in missing:
            like = next(place for place in layout.places if place.layer == layer and place.target in fused[target])
            places.append(Place(layer, target, like.in_dim, adapter.base.widths[target]))
    wider = replace(layout, places=tuple(places))
    blank = torch.zeros(1, wider.numel, dtype=adapter.weights.values.dtype)
    zeros = {place[:2]: blank.new_zeros(wider.shared_shape(place)) for place in places if wider.shared}
    weights = PerceptualWeights(blank, wider, zeros | dict(adapter.weights.shared))
    for place in layout.place_of:
        pairs = zip("ab", weights.factors(*place), adapter.weights.factors(*place), strict=True)
        for factor, ours, theirs in pairs:
            if factor in layout.factors:
                ours.copy_(theirs)  # a view of `blank`
    return replace(adapter, weights=weights)


def tensor_origin(kind: str, values: Tensor) -> Origin:
    """The identity of an image of which only its visual parameters or its perceptual weights are at hand."""
    data = values.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return Origin(kind, hashlib.sha256(data).hexdigest())


def check_base(fingerprint_of_base: str, model: nn.Module, *, what: str, name: str | None) -> None:
    """Refuse an adapter of another language model.

    Args:
        fingerprint_of_base: that the adapter was made for.
        model: a language model with its head, or one of ours.
        what: the adapter, for the message.
        name: of its base, for the message.

    Raises:
        CheckpointError: another language model than the given one.
        InputError: no language model.
    """
    decoder = model.model.language_model if isinstance(model, VLoRAForConditionalGeneration) else None
    decoder = decoder or getattr(model, "model", None)
    if not isinstance(decoder, nn.Module):
        raise InputError(
            f"{type(model).__name__} is no language model with its head: give one as transformers loads it."
        )
    given = fingerprint(decoder)
    if given != fingerprint_of_base:
        raise CheckpointError(
            f"{what} was made for the language model {name or 'with no name'} (fingerprint {fingerprint_of_base}); the "
            f"given one has fingerprint {given}: load the language model it was made for, or export the image again."
        )


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor of its own memory in another precision.

    Raises:
        InputError: numbers beyond what that precision can hold.
    """
    written = tensor.to(dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)
    if not written.isfinite().all():
        name = str(written.dtype).removeprefix("torch.")
        raise InputError(
            f"The factors of this image reach {tensor.abs().max():.3g}, which {name} cannot hold: give float32."
        )
    return written
