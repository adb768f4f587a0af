"""The value types: indexing, joining, moving, counting, saving."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vlora.errors import CheckpointError, InputError
from vlora.model import PerceptualWeights, VisualParameters
from vlora.model.weights import INPUT_OF, MERGEABLE, TARGETS, Layout, Place

IN_DIM = {"attention": 6, "output": 4, "mlp": 6, "down": 10}
OUT_DIM = {"q": 8, "k": 4, "v": 4, "o": 6, "gate": 10, "up": 10, "down": 6, "mlp": 6}
RANK = 3


def a_layout(targets: tuple[str, ...] = TARGETS, layers: tuple[int, ...] = (1, 3)) -> Layout:
    places = tuple(Place(layer, t, IN_DIM[INPUT_OF[t]], OUT_DIM[t]) for t in targets for layer in layers)
    return Layout(places, RANK, 0.5)


def some_weights(batch: int, layout: Layout | None = None) -> PerceptualWeights:
    layout = layout or a_layout()
    shared = {place[:2]: torch.randn(layout.shared_shape(place)) for place in layout.places if layout.shared}
    return PerceptualWeights(torch.randn(batch, layout.numel), layout, shared)


def some_with_own_b(batch: int) -> PerceptualWeights:
    return some_weights(batch, replace(a_layout(), factors="b"))


def some_with_both(batch: int) -> PerceptualWeights:
    return some_weights(batch, replace(a_layout(), factors="ab"))


def some_parameters(batch: int) -> VisualParameters:
    return VisualParameters(torch.randn(batch, 8, 2, 5))


MAKERS = pytest.mark.parametrize("make", [some_parameters, some_weights, some_with_own_b, some_with_both])
INDICES: list[tuple[Any, list[int]]] = [
    (0, [0]),
    (3, [3]),
    (-1, [3]),
    (-2, [2]),
    (-4, [0]),
    (slice(1, 3), [1, 2]),
    (slice(None, None, 2), [0, 2]),
    (slice(0, 0), []),
    ([2, 0, 2], [2, 0, 2]),
    ((1,), [1]),
    (range(2, 4), [2, 3]),
    ([-1, 1], [3, 1]),
    (torch.tensor([3, 1]), [3, 1]),
    (torch.tensor([True, False, False, True]), [0, 3]),
    (torch.tensor(2), [2]),
]


@MAKERS
@pytest.mark.parametrize(("index", "expected"), INDICES, ids=lambda value: str(value))
def test_an_index_of_any_kind_gives_a_batch(make: Any, index: Any, expected: list[int]) -> None:
    whole = make(4)
    part = whole[index]
    assert type(part) is type(whole)
    assert len(part) == len(expected)
    assert torch.equal(part.values, torch.stack([*whole.values])[expected])


@MAKERS
@pytest.mark.parametrize("index", [4, -5, 100])
def test_an_index_beyond_the_batch_is_an_error(make: Any, index: int) -> None:
    with pytest.raises(IndexError):
        make(4)[index]


@MAKERS
def test_a_loop_goes_over_the_samples_once(make: Any) -> None:
    whole = make(3)
    samples = [sample for sample, _ in zip(whole, range(9), strict=False)]
    assert [len(sample) for sample in samples] == [1, 1, 1]
    assert torch.equal(torch.cat([sample.values for sample in samples]), whole.values)


@MAKERS
def test_stack_joins_what_an_index_took_apart(make: Any) -> None:
    whole = make(4)
    again = type(whole).stack([whole[[0]], whole[1:3], whole[-1]])
    assert torch.equal(again.values, whole.values)


@MAKERS
def test_to_converts_and_counts(make: Any) -> None:
    whole = make(2)
    half = whole.to(torch.bfloat16)
    assert half.values.dtype == torch.bfloat16
    assert half.nbytes * 2 == whole.nbytes == whole.values.numel() * 4
    assert whole.to("cpu").values.device.type == "cpu"
    assert whole.values.dtype == torch.float32
    assert str(half.nbytes) in repr(half)


@MAKERS
def test_a_file_gives_back_what_was_saved(make: Any, tmp_path: Path) -> None:
    whole = make(3).to(torch.bfloat16)
    whole[1:].save(tmp_path / "x.safetensors")  # a view: only what is seen is saved
    again = type(whole).load(tmp_path / "x.safetensors")
    assert torch.equal(again.values, whole.values[1:])
    assert again.values.dtype == torch.bfloat16
    assert (tmp_path / "x.safetensors").stat().st_size < whole.nbytes + 20_000


@MAKERS
def test_a_truncated_file_is_refused(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    make(3).save(path)
    content = path.read_bytes()
    for length in (0, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"x\.safetensors is not a readable"):
            type(make(1)).load(path)


@MAKERS
def test_a_missing_file_and_a_folder_are_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        type(make(1)).load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="not a readable"):
        type(make(1)).load(tmp_path)


def test_with_factors_ab_each_sample_has_a_b_of_its_own() -> None:
    weights = some_with_both(3)
    layout = weights.layout
    assert layout.numel == sum(RANK * (place.in_dim + place.out_dim) for place in layout.places)
    taken = torch.zeros(layout.numel)
    for place in layout.places:
        a, b = weights.factors(place.layer, place.target)
        assert (a.shape, b.shape) == ((3, place.in_dim, RANK), (3, RANK, place.out_dim))
        b[0].fill_(float("nan"))  # a view
        taken += weights.values[0].isnan()
        b[0].zero_()
        assert torch.equal(weights[1].factors(place.layer, place.target)[1][0], b[1])
    assert taken.sum() == sum(RANK * place.out_dim for place in layout.places)
    assert taken.max() == 1  # no two B overlap


def test_a_file_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    some_weights(1).save(tmp_path / "weights")
    some_parameters(1).save(tmp_path / "parameters")
    with pytest.raises(CheckpointError, match="holds no visual parameters"):
        VisualParameters.load(tmp_path / "weights")
    with pytest.raises(CheckpointError, match="holds no perceptual weights; it holds visual_parameters"):
        PerceptualWeights.load(tmp_path / "parameters")


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"layout": "{"},
        {"layout": "[]"},
        {"layout": json.dumps({"places": [], "rank": 1})},
        {"layout": json.dumps({"places": [[0, "q"]], "rank": 1, "scale": 1.0})},
        {"layout": json.dumps({"places": [[0, "q", 2, 2]], "rank": 1, "scale": 1.0})},
        {"layout": json.dumps({"places": [[0, "q", 2, 2]], "rank": 1, "scale": 1.0, "factors": "ab"})},
        {"layout": json.dumps({"places": [[0, "q", 2, 2]], "rank": 1, "scale": 1.0, "factors": "b"})},
        {"layout": json.dumps({"places": [], "rank": 1, "scale": 1.0, "factors": "c"})},
    ],
    ids=["none", "no-json", "no-object", "no-scale", "no-shape", "no-b", "no-own-b", "no-a", "no-such-factors"],
)
def test_a_damaged_layout_is_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    save_file({"values": torch.zeros(1, 2)}, tmp_path / "x", metadata=metadata)
    with pytest.raises(CheckpointError):
        PerceptualWeights.load(tmp_path / "x")


@pytest.mark.parametrize("make", [some_weights, some_with_own_b, some_with_both])
def test_a_file_keeps_the_layout_and_what_is_shared(make: Any, tmp_path: Path) -> None:
    weights = make(2)
    weights.save(tmp_path / "x")
    again = PerceptualWeights.load(tmp_path / "x")
    assert again.layout == weights.layout
    assert again.shared.keys() == weights.shared.keys()
    assert all(torch.equal(again.shared[place], factor) for place, factor in weights.shared.items())
    assert torch.equal(again.delta(3, "v"), weights.delta(3, "v"))


def test_weights_that_need_gradients_are_saved_and_moved() -> None:
    weights = some_weights(2)
    weights.values.requires_grad_()
    weights.to(torch.float64)[0].values.sum().backward()
    assert weights.values.grad is not None
    assert weights.values.grad[0].all()
    assert not weights.values.grad[1].any()


@pytest.mark.parametrize("shape", [(8, 2, 5), (1, 8, 2, 5, 1), (5,)])
def test_visual_parameters_of_a_bad_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\[batch, targets, layers, dim\]"):
        VisualParameters(torch.zeros(shape))


def test_weights_of_a_bad_shape_are_refused() -> None:
    layout = a_layout()
    for values in (torch.zeros(layout.numel), torch.zeros(1, layout.numel + 1), torch.zeros(1, 1, layout.numel)):
        with pytest.raises(InputError, match=rf"\[batch, {layout.numel}\]"):
            PerceptualWeights(values, layout, {})


def test_weights_of_different_models_do_not_stack() -> None:
    with pytest.raises(InputError, match="different models"):
        PerceptualWeights.stack([some_weights(1), some_weights(1, a_layout(("q", "v")))])


def test_rows_gives_each_row_its_image_and_minus_one_none() -> None:
    weights = some_weights(3)
    weights.values[1] = torch.nan
    rows = weights.rows(torch.tensor([2, -1, 0, 2]))
    assert torch.equal(rows.values[[0, 2, 3]], weights.values[[2, 0, 2]])
    assert not rows.values[1].any()
    assert not rows.delta(1, "mlp")[1].any()


def test_rows_carries_gradients_only_to_the_images_that_are_looked_at() -> None:
    weights = some_weights(3)
    weights.values.requires_grad_()
    weights.rows(torch.tensor([2, -1, 2])).values.sum().backward()
    gradient = weights.values.grad
    assert gradient is not None
    assert gradient.unique(dim=1)[:, 0].tolist() == [0, 0, 2]


def test_a_row_of_values_is_made_of_sites() -> None:
    """Every number of a row belongs to exactly one A, and targets of one input lie side by side."""
    layout = a_layout()
    weights = PerceptualWeights(torch.arange(layout.numel).double()[None], layout, some_weights(1).shared)
    assert [(s.layer, s.input, s.targets) for s in layout.sites[:4]] == [
        (1, "attention", ("q", "k", "v")),
        (1, "output", ("o",)),
        (1, "mlp", ("gate", "up", "mlp")),
        (1, "down", ("down",)),
    ]
    numbers: list[Tensor] = []
    for place in layout.places:
        a, b = weights.factors(place.layer, place.target)
        assert a.shape == (1, place.in_dim, RANK)
        assert b.shape == (RANK, place.out_dim)
        assert weights.delta(place.layer, place.target).shape == (1, place.in_dim, place.out_dim)
        numbers.append(a.flatten())
    assert torch.equal(torch.cat(numbers).sort().values, torch.arange(layout.numel).double())
    site = layout.sites_of[1][0]
    side_by_side = torch.cat([weights.factors(1, target)[0] for target in site.targets], dim=-1)
    assert torch.equal(weights.site(site), side_by_side)
    assert weights.site(site).data_ptr() == weights.values.data_ptr()  # a view


def test_delta_is_scale_times_a_times_b() -> None:
    weights = some_weights(2)
    a, b = weights.factors(3, "k")
    torch.testing.assert_close(weights.delta(3, "k"), torch.einsum("nir,ro->nio", a, b) * 0.5)


def test_a_place_that_is_not_there_is_named() -> None:
    weights = some_weights(1, a_layout(("q", "v"), (1,)))
    with pytest.raises(InputError, match=r"layer 2, target 'q'; there are: 1\.q, 1\.v"):
        weights.factors(2, "q")
    with pytest.raises(InputError, match="target 'mlp'"):
        weights.delta(1, "mlp")


def test_all_but_the_bypass_are_mergeable() -> None:
    assert set(TARGETS) - set(MERGEABLE) == {"mlp"}
