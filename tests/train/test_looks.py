"""Looks: the whole run is a pure function of the seed, and uses every question before it repeats one."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vlora.data.sets import easy_vqa
from vlora.model.loss import IGNORED
from vlora.train.looks import Collator, augmented, plan


def test_a_longer_plan_begins_like_a_shorter_one() -> None:
    short, long = (plan(images=images, per_image=3, seed=5) for images in (70, 4100))
    assert long[:70] == short
    assert plan(images=70, per_image=3, seed=6) != short


def test_an_epoch_shows_every_image_once() -> None:
    looks = plan(images=8000, per_image=2, seed=0)
    for epoch in (looks[:4000], looks[4000:]):
        assert len({look.image for look in epoch}) == 4000


def test_every_question_is_asked_before_one_is_asked_again() -> None:
    data = easy_vqa.load("train")
    image = data.questions[0].image_id
    own = Counter((q.question, q.answer) for q in data.questions if q.image_id == image)
    looks = plan(images=3 * sum(own.values()), per_image=1, seed=1, limit_images=1)
    asked = [look.questions[0] for look in looks if look.image == data.image_path(image)]
    for begin in range(0, len(asked), sum(own.values())):
        assert Counter(asked[begin : begin + sum(own.values())]) == own


def test_only_train_images_are_looked_at() -> None:
    data = easy_vqa.load("test")
    test = {data.image_path(image) for image in range(1000)}
    assert not test & {look.image for look in plan(images=4000, per_image=1, seed=0)}


@pytest.mark.parametrize("seed", range(8))
def test_augmentation_keeps_colour_and_size(seed: int) -> None:
    image = Image.new("RGB", (64, 64), (200, 220, 210))
    ImageDraw.Draw(image).rectangle((20, 24, 40, 36), fill=(10, 20, 200))
    changed = augmented(image, random.Random(seed))
    pixels = np.asarray(changed).reshape(-1, 3)
    assert changed.size == image.size
    assert (np.abs(pixels - np.array((10, 20, 200))).sum(1) < 8).sum() > 120  # the shape is still there, still blue
    assert (np.abs(pixels - np.array((200, 220, 210))).sum(1) < 8).mean() > 0.7
    assert augmented(image, random.Random(seed)).tobytes() == changed.tobytes()


def test_consecutive_rows_share_an_image() -> None:
    def sample(value: float) -> dict[str, object]:
        texts = [([1, 2, 3], [IGNORED, 2, 3]), ([4, 5], [IGNORED, 5])]
        return {"pixels": torch.full((3, 4, 4), value), "texts": texts}

    batch = Collator(pad=9)([sample(0.0), sample(1.0)])
    assert batch["pixel_values"].shape == (2, 3, 4, 4)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 9]] * 2
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]] * 2
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [IGNORED, 5, IGNORED]] * 2
