"""An image as an adapter: its sizes, its identity, and what cannot be one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.helpers import images, plain_llm, shared_model, tiny_llm, tiny_model
from vlora.errors import CheckpointError, InputError, UnsupportedModel
from vlora.export.adapter import Origin, adapter_of, base_of, cast, check_base, completed, tensor_origin
from vlora.model import PerceptualWeights, VLoRAForConditionalGeneration
from vlora.model.assemble import fingerprint
from vlora.model.inject import MODULE_OF
from vlora.model.weights import MERGEABLE


@torch.no_grad()
def weights_of(model: VLoRAForConditionalGeneration, count: int = 1) -> PerceptualWeights:
    return model.expand(model.perceive(images(count)))


def test_sizes() -> None:
    model = shared_model(targets=("q", "gate"), static_rank=2)  # rank 4, alpha 6
    adapter = adapter_of(weights_of(model), base_of(model))
    assert (adapter.rank, adapter.alpha, adapter.layers, adapter.targets) == (6, 9, (1, 3), ("q", "gate"))
    assert isinstance(adapter.alpha, int)
    assert adapter.numel == 2 * 6 * ((48 + 64) + (48 + 80))
    a, b = adapter.pair(3, "gate")
    assert (a.shape, b.shape) == ((6, 48), (80, 6))
    delta = adapter.alpha / adapter.rank * b @ a
    torch.testing.assert_close(delta, weights_of(model).delta(3, "gate")[0].mT)


def test_an_alpha_that_is_no_whole_number() -> None:
    model = shared_model(targets=("q",), alpha=6.5)
    assert adapter_of(weights_of(model), base_of(model)).alpha == 6.5


def test_mlp_is_refused_with_the_way_out() -> None:
    model = shared_model(targets=("q", "mlp"))
    with pytest.raises(UnsupportedModel, match=r"'mlp', a bypass .* targets gate, up and down in its place\.$"):
        adapter_of(weights_of(model), base_of(model))


def test_several_samples_are_refused() -> None:
    model = shared_model(targets=MERGEABLE)
    with pytest.raises(InputError, match=r"hold 2: pick one, as in weights\[0\]"):
        adapter_of(weights_of(model, 2), base_of(model))


def test_weights_that_are_not_finite_are_refused() -> None:
    model = shared_model(targets=MERGEABLE)
    weights = weights_of(model)
    values = weights.values.clone()
    values[0, 5] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        adapter_of(PerceptualWeights(values, weights.layout, weights.shared), base_of(model))


def test_an_adapter_keeps_its_numbers() -> None:
    model = shared_model(targets=MERGEABLE)
    weights = weights_of(model)
    adapter = adapter_of(weights, base_of(model))
    before = adapter.weights.values.clone()
    weights.values.zero_()
    torch.testing.assert_close(adapter.weights.values, before, rtol=0, atol=0)


def test_the_base() -> None:
    model = shared_model("qwen3", targets=MERGEABLE)
    base = base_of(model, name="owner/name", form="4 bits")
    widths = {"q": 64, "k": 32, "v": 32, "gate": 80, "up": 80}
    assert dataclasses.astuple(base)[1:] == ("qwen3", 4, 2, widths, "owner/name", "4 bits")
    assert base.fingerprint == fingerprint(plain_llm(model).model)


def test_a_merged_model_has_no_base() -> None:
    model = tiny_model(targets=MERGEABLE)
    before = base_of(model)
    model.merge(weights_of(model))
    with pytest.raises(InputError, match="unmerge it first"):
        base_of(model)
    model.unmerge()
    assert base_of(model) == before


def test_the_base_is_checked() -> None:
    model = shared_model(targets=MERGEABLE)
    own = base_of(model).fingerprint
    check_base(own, model, what="The adapter", name=None)
    check_base(own, plain_llm(model), what="The adapter", name=None)
    with pytest.raises(
        CheckpointError, match=rf"^The adapter was made for .* tiny \(fingerprint {own}\); the given one"
    ):
        check_base(own, tiny_llm("llama"), what="The adapter", name="tiny")


def test_what_is_no_language_model_is_refused() -> None:
    with pytest.raises(InputError, match="Linear is no language model"):
        check_base("0", torch.nn.Linear(1, 1), what="The adapter", name=None)


@pytest.mark.parametrize(
    "options", [{}, {"factors": "b", "static_rank": 2}, {"factors": "ab", "static_rank": 2}], ids=str
)
@pytest.mark.parametrize(
    ("targets", "whole"),
    [
        (("v", "up"), ("q", "k", "v", "gate", "up")),
        (("k", "o"), ("q", "k", "v", "o")),
        (("gate", "down"), ("gate", "up", "down")),
    ],
)
def test_what_engines_fuse_is_completed(
    targets: tuple[str, ...], whole: tuple[str, ...], options: dict[str, Any]
) -> None:
    model = shared_model(targets=targets, **options)
    adapter = adapter_of(weights_of(model), base_of(model))
    complete = completed(adapter)
    assert (complete.targets, complete.rank, complete.alpha) == (whole, adapter.rank, adapter.alpha)
    for place in complete.weights.layout.places:
        found = complete.weights.delta(place.layer, place.target)
        assert found.shape[1:] == (place.in_dim, place.out_dim)
        if place.target in targets:
            torch.testing.assert_close(found, adapter.weights.delta(place.layer, place.target), rtol=0, atol=0)
        else:
            assert not found.any()
            linear = model.model.language_model.layers[place.layer].get_submodule(MODULE_OF[place.target])
            assert (place.in_dim, place.out_dim) == (linear.in_features, linear.out_features)


def test_what_is_complete_stays_as_it_is() -> None:
    model = shared_model(targets=MERGEABLE)
    adapter = adapter_of(weights_of(model), base_of(model))
    assert completed(adapter) is adapter
    model = shared_model(targets=("o", "down"))
    adapter = adapter_of(weights_of(model), base_of(model))
    assert completed(adapter) is adapter


def test_origins() -> None:
    values = torch.arange(6.0).view(2, 3)
    assert tensor_origin("visual parameters", values) == tensor_origin("visual parameters", values.mT.contiguous().mT)
    assert tensor_origin("visual parameters", values) != tensor_origin("visual parameters", values + 1)
    assert isinstance(tensor_origin("perceptual weights", values.bfloat16()), Origin)


def test_casting() -> None:
    tensor = torch.randn(3, 4)
    turned = cast(tensor.mT, None)
    assert turned.is_contiguous()
    assert turned.data_ptr() != tensor.data_ptr()
    assert cast(tensor, torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"reach 1e\+05, which float16 cannot hold: give float32\.$"):
        cast(tensor.fill_(1e5), torch.float16)
