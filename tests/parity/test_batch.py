"""(c) A batch in which every row has its own image, or none, equals its rows one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import KINDS, images, padded, plain_llm, real_positions, shared_model, token_ids
from vlora.errors import InputError
from vlora.model.inject import SUPPORTED

LENGTHS = (9, 4, 12, 7, 12)
INDEX = torch.tensor([2, -1, 0, 2, -1])  # the image of each row; image 1 is nobody's


def _texts() -> list[Tensor]:
    return [token_ids(1, length, seed=length + row)[0] for row, length in enumerate(LENGTHS)]


def _alone(family: str, texts: list[Tensor], index: Tensor, pixels: Tensor) -> list[Tensor]:
    model = shared_model(family)
    return [
        model(input_ids=text[None], pixel_values=None if i < 0 else pixels[i : i + 1]).logits[0]
        for text, i in zip(texts, index.tolist(), strict=True)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", SUPPORTED)
@torch.no_grad()
def test_a_batch_equals_one_by_one(family: str, side: str) -> None:
    model, texts, pixels = shared_model(family), _texts(), images(3)
    batch = padded(texts, side)
    logits = model(**batch, pixel_values=pixels, image_index=INDEX).logits
    alone = _alone(family, texts, INDEX, pixels)
    for row, expected in zip(real_positions(logits, batch["attention_mask"]), alone, strict=True):
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)

    # Rows without an image: not merely close, and while their neighbours wear one.
    plain, bare = plain_llm(model)(**batch).logits, INDEX < 0
    assert torch.equal(logits[bare], plain[bare])
    assert not torch.isclose(logits[~bare], plain[~bare], atol=1e-2).all()


@pytest.mark.parametrize("options", KINDS[1:], ids=str)
@torch.no_grad()
def test_so_it_does_for_every_kind_of_generator(options: dict[str, Any]) -> None:
    model, texts, pixels = shared_model(**options), _texts(), images(3)
    batch = padded(texts, "left")
    logits = model(**batch, pixel_values=pixels, image_index=INDEX).logits
    for row, text, mask, i in zip(logits, texts, batch["attention_mask"], INDEX.tolist(), strict=True):
        alone = model(input_ids=text[None], pixel_values=None if i < 0 else pixels[i : i + 1]).logits[0]
        torch.testing.assert_close(row[mask.bool()], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits[INDEX < 0], plain_llm(model)(**batch).logits[INDEX < 0])


@torch.no_grad()
def test_the_order_of_rows_and_of_images_does_not_matter() -> None:
    model, pixels = shared_model(), images(3)
    batch = padded(_texts(), "left")
    logits = model(**batch, pixel_values=pixels, image_index=INDEX).logits
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        rows, order = torch.randperm(5, generator=rng), torch.randperm(3, generator=rng)
        index = INDEX[rows]
        index = torch.where(index < 0, index, order.argsort()[index.clamp_min(0)])
        moved = model(
            **{name: value[rows] for name, value in batch.items()}, pixel_values=pixels[order], image_index=index
        ).logits
        torch.testing.assert_close(moved, logits[rows], rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_different_images_give_different_answers() -> None:
    model = shared_model()
    ids = token_ids(1, 9).expand(3, -1)
    logits = model(input_ids=ids, pixel_values=images(3)).logits
    assert all((logits[i] - logits[j]).abs().max() > 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(("count", "each"), [(1, 1), (3, 1), (1, 4), (2, 3)])
@torch.no_grad()
def test_consecutive_rows_share_an_image(count: int, each: int) -> None:
    model, pixels = shared_model(), images(count)
    ids = token_ids(count * each, 8)
    index = torch.arange(count).repeat_interleave(each)
    shared = model(input_ids=ids, pixel_values=pixels).logits
    for form in (index, index[:, None]):
        logits = model(input_ids=ids, pixel_values=pixels, image_index=form).logits
        torch.testing.assert_close(logits, shared, rtol=1e-5, atol=2e-5)
    weights = model.expand(model.perceive(pixels))
    assert torch.equal(model(input_ids=ids, perceptual_weights=weights).logits, shared)
    assert torch.equal(model(input_ids=ids, perceptual_weights=weights.values).logits, shared)


@torch.no_grad()
def test_a_batch_of_bare_rows_is_the_plain_model() -> None:
    model = shared_model()
    ids = token_ids(3, 8)
    logits = model(input_ids=ids, pixel_values=images(1), image_index=torch.tensor([-1, -1, -1])).logits
    expected = plain_llm(model)(input_ids=ids).logits
    assert torch.equal(logits, expected)
    assert torch.equal(model(input_ids=ids, pixel_values=images(1)[:0]).logits, expected)


@torch.no_grad()
def test_a_bare_row_is_untouched_by_weights_that_are_not_finite() -> None:
    model = shared_model()
    ids = token_ids(2, 8)
    pixels = torch.full((1, 3, 32, 32), float("nan"))
    logits = model(input_ids=ids, pixel_values=pixels, image_index=torch.tensor([0, -1])).logits
    assert logits[0].isnan().all()
    assert torch.equal(logits[1], plain_llm(model)(input_ids=ids).logits[1])


def test_images_and_rows_that_do_not_fit_are_refused() -> None:
    model, ids = shared_model(), token_ids(3, 8)
    with pytest.raises(InputError, match="2 images cannot be shared out evenly to 3 rows"):
        model(input_ids=ids, pixel_values=images(2))
    for wrong in (torch.tensor([0, 1]), torch.zeros(2, 3), torch.zeros(3, 0), torch.zeros(3, 1, 1)):
        with pytest.raises(InputError, match=r"must have the shape \[3\] or \[3, images\]"):
            model(input_ids=ids, pixel_values=images(2), image_index=wrong.long())
    weights = model.expand(model.perceive(images(2)))
    with pytest.raises(InputError, match="2 samples of perceptual weights"):
        model(input_ids=ids, perceptual_weights=weights)


def test_weights_of_another_model_are_refused() -> None:
    model, other = shared_model(), shared_model(targets=("q", "v"))
    weights = other.expand(other.perceive(images(1)))
    with pytest.raises(InputError, match="belong to another model"):
        model(input_ids=token_ids(1, 8), perceptual_weights=weights)
    with pytest.raises(InputError, match="need values of shape"):
        model(input_ids=token_ids(1, 8), perceptual_weights=weights.values)
    with pytest.raises(InputError, match="belong to another model"):
        model.expand(other.perceive(images(1)))
