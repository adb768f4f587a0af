"""Several looks at one image: what is seen is their mean, and the language model does no more for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import IMAGE_SIZE, images, tiny_model, token_ids
from vlora.cost import cost
from vlora.errors import ConfigError, InputError
from vlora.loading import load
from vlora.model import VLoRAConfig, VLoRAForConditionalGeneration
from vlora.model.vision import shifted

VIEWS = ((0, 0), (2, 0), (0, -3))
KINDS: list[dict[str, Any]] = [{}, {"vision": "efficientnet"}, {"factors": "ab", "norms": True, "queries": "joint"}]


def _looking(device: str = "cpu", **options: Any) -> VLoRAForConditionalGeneration:
    model = tiny_model(**options).to(device)  # pyright: ignore[reportArgumentType]
    model.config.views = VIEWS
    return model


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (-2, 0), (0, 3), (0, -3), (5, -4)])
def test_pixels_move_and_those_at_the_border_are_repeated(right: int, down: int) -> None:
    pixels = torch.randn(2, 3, 12, 10)
    moved = shifted(pixels, right, down)
    for row in range(12):
        for column in range(10):
            source = pixels[..., min(max(row - down, 0), 11), min(max(column - right, 0), 9)]
            assert torch.equal(moved[..., row, column], source)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("count", [3, 20, 33])  # all views in one pass, in two, in one each
@torch.no_grad()
def test_what_is_seen_is_the_mean_over_the_views(options: dict[str, Any], count: int, device: str) -> None:
    model, pixels = _looking(device, **options), images(count).to(device)
    seen = model.perceive(pixels).values
    every: Any = model.get_image_features(pixels)
    assert torch.equal(every.pooler_output, seen)
    model.config.views = ((0, 0),)
    alone = [model.perceive(shifted(pixels, *view)).values for view in VIEWS]
    torch.testing.assert_close(seen, torch.stack(alone).mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    first: Any = model.get_image_features(pixels)
    torch.testing.assert_close(every.last_hidden_state, first.last_hidden_state)


@torch.no_grad()
def test_logits_and_generation_wear_what_is_seen() -> None:
    model, pixels, ids = _looking(), images(2), token_ids(2, 5)
    weights = model.expand(model.perceive(pixels))
    looked, worn = model(input_ids=ids, pixel_values=pixels), model(input_ids=ids, perceptual_weights=weights)
    assert torch.equal(looked.logits, worn.logits)
    written = model.generate(ids, pixel_values=pixels, max_new_tokens=4, do_sample=False)
    again = model.generate(ids, perceptual_weights=weights, max_new_tokens=4, do_sample=False)
    assert torch.equal(written, again)


def test_training_looks_once() -> None:
    model, pixels = _looking().train(), images(2)
    seen = model.perceive(pixels).values
    model.config.views = VIEWS[:1]
    torch.testing.assert_close(seen, model.perceive(pixels).values)


def test_a_folder_keeps_the_views(tmp_path: Path) -> None:
    model = _looking()
    model.save_pretrained(tmp_path)
    again = VLoRAForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.views == VIEWS
    assert torch.equal(again.perceive(images(1)).values, model.perceive(images(1)).values)


def test_nano_looks_as_often_as_it_is_told() -> None:
    every = load("nano").model.config.views
    assert len(every) == 5
    assert load("nano", views=1).model.config.views == every[:1]
    with pytest.raises(
        InputError, match=f"{len(every) + 1} views of an image are not possible: give 1 to {len(every)}, as many"
    ):
        load("nano", views=len(every) + 1)
    with pytest.raises(InputError, match="0 views of an image"):
        load("nano", views=0)


@pytest.mark.parametrize("views", [(), ((0, 0), (1,))])
def test_views_are_pairs(views: Any) -> None:
    with pytest.raises(ConfigError, match=r"one or more pairs of pixels, \[right, down\]"):
        VLoRAConfig(views=views)


def test_the_bill_has_the_encoder_and_the_trunk_once_for_each_view() -> None:
    model = _looking(vision="efficientnet")
    bill, one = cost(model=model.config), cost(model=_once(model.config))
    with FlopCounterMode(display=False) as counter:
        model.expand(model.perceive(images(1)))
    assert bill.vlora.encoder + bill.vlora.bridge == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert bill.vlora.encoder == len(VIEWS) * one.vlora.encoder
    assert one.vlora.bridge < bill.vlora.bridge < len(VIEWS) * one.vlora.bridge
    assert bill.vlora.prefill == one.vlora.prefill
    assert bill.visual_tokens == one.visual_tokens
    assert bill.training == one.training
    assert bill.state_bytes.visual_parameters == one.state_bytes.visual_parameters
    assert bill.state_bytes.features == len(VIEWS) * one.state_bytes.features


def _once(config: VLoRAConfig) -> VLoRAConfig:
    again = copy.deepcopy(config)
    again.views = VIEWS[:1]
    return again


def test_shifts_wider_than_the_image_repeat_its_border() -> None:
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    moved = shifted(pixels, IMAGE_SIZE + 3, 0)
    assert torch.equal(moved, pixels[..., :1].expand_as(pixels))
