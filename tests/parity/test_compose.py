"""Several images in one row: its ΔW is the sum of theirs, whatever their order, and no dense matrix is made."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import KINDS, images, merge, padded, plain_llm, shared_model, token_ids
from vlora.errors import InputError
from vlora.model import PerceptualWeights, VLoRAForConditionalGeneration
from vlora.model.weights import FACTORS, MERGEABLE

SETS = [[0, 2], [], [1], [2, 1, 0], [1, 1]]
INDEX = torch.tensor([[0, 2, -1], [-1, -1, -1], [-1, 1, -1], [2, 1, 0], [1, 1, -1]])
NEW = 6
every_kind = pytest.mark.parametrize("options", KINDS, ids=str)


def _weights(model: VLoRAForConditionalGeneration, count: int = 3) -> PerceptualWeights:
    return model.expand(model.perceive(images(count)))


@every_kind
@torch.no_grad()
def test_the_delta_of_a_set_is_the_sum_of_its_deltas(options: dict[str, Any]) -> None:
    weights = _weights(shared_model(**options))
    rows = weights.rows(INDEX)
    for place in weights.layout.place_of:
        each = weights.delta(*place)
        expected = torch.stack([each[one].sum(0) for one in SETS])
        torch.testing.assert_close(rows.delta(*place), expected, rtol=1e-5, atol=1e-5)
        assert not rows.delta(*place)[1].any()


@every_kind
@torch.no_grad()
def test_the_order_does_not_matter(options: dict[str, Any]) -> None:
    model, ids = shared_model(**options), token_ids(1, 9)
    weights = _weights(model)
    logits = [
        model(input_ids=ids, perceptual_weights=weights.rows(torch.tensor([p]))).logits for p in permutations(range(3))
    ]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-4)
    two = model(input_ids=ids, perceptual_weights=weights.rows(torch.tensor([[0, 1]]))).logits
    assert (two - logits[0]).abs().max() > 0.1  # the third image was worn too


@every_kind
@torch.no_grad()
def test_a_set_is_worn_as_its_merged_sum(options: dict[str, Any]) -> None:
    model, ids = shared_model(targets=MERGEABLE, **options), token_ids(1, 9)
    weights = _weights(model)
    plain = plain_llm(model)
    for sample in range(3):
        merge(plain, weights[sample])
    worn = model(input_ids=ids, pixel_values=images(3), image_index=torch.tensor([[0, 1, 2]])).logits
    torch.testing.assert_close(worn, plain(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    composed = model(input_ids=ids, perceptual_weights=weights.composed()).logits
    torch.testing.assert_close(composed, worn, rtol=1e-5, atol=1e-5)


@every_kind
@torch.no_grad()
def test_rows_with_different_numbers_of_images_equal_rows_one_by_one(options: dict[str, Any]) -> None:
    model, pixels = shared_model(**options), images(3)
    texts = [token_ids(1, length, seed=length)[0] for length in (9, 4, 12, 7, 5)]
    batch = padded(texts, "left")
    logits = model(**batch, pixel_values=pixels, image_index=INDEX).logits
    for row, (text, one) in enumerate(zip(texts, SETS, strict=True)):
        given: dict[str, Tensor] = (
            {"pixel_values": pixels[one], "image_index": torch.arange(len(one))[None]} if one else {}
        )
        alone = model(input_ids=text[None], **given).logits[0]
        torch.testing.assert_close(logits[row, batch["attention_mask"][row].bool()], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits[1], plain_llm(model)(**batch).logits[1])


@every_kind
@torch.no_grad()
def test_sets_are_worn_while_writing(options: dict[str, Any]) -> None:
    model, pixels = shared_model(**options), images(3)
    wishes: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    ids = token_ids(len(SETS), 6)
    for beams in (1, 3):
        written = model.generate(ids, pixel_values=pixels, image_index=INDEX, num_beams=beams, **wishes)
        for row, one in enumerate(SETS):
            given: dict[str, Tensor] = (
                {"pixel_values": pixels[one], "image_index": torch.arange(len(one))[None]} if one else {}
            )
            assert torch.equal(written[row], model.generate(ids[row : row + 1], num_beams=beams, **given, **wishes)[0])
    composed = _weights(model).composed()
    kept = model.generate(ids[3:4], perceptual_weights=composed, **wishes)
    assert torch.equal(kept[0], model.generate(ids, pixel_values=pixels, image_index=INDEX, **wishes)[3])


@torch.no_grad()
def test_with_a_shared_factor_nothing_grows() -> None:
    both = shared_model(factors="ab")
    for one in (shared_model(), shared_model(factors="b")):
        assert _weights(one).composed().layout == one.model.generator.layout
    assert _weights(both).composed().layout.rank == 3 * both.model.generator.layout.rank


@torch.no_grad()
def test_composed_weights_of_another_model_are_refused() -> None:
    model = shared_model(factors="ab")
    other = _weights(shared_model(factors="ab", targets=("q", "v"))).composed()
    with pytest.raises(InputError, match="belong to another model"):
        model(input_ids=token_ids(1, 5), perceptual_weights=other)


@pytest.mark.parametrize("factors", FACTORS)
def test_every_image_of_a_set_is_learned_from(factors: str) -> None:
    model = shared_model(factors=factors)
    pixels = images(2).requires_grad_()
    weights = model.expand(model.perceive(pixels))
    ids = token_ids(1, 6)
    model(input_ids=ids, perceptual_weights=weights.composed(), labels=ids).loss.backward()
    assert weights.values.requires_grad
    (gradient,) = torch.autograd.grad(
        model(input_ids=ids, perceptual_weights=weights.composed(), labels=ids).loss, weights.values
    )
    assert all(row.any() for row in gradient)
    model.zero_grad()
