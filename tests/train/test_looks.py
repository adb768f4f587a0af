"""Looks: a sample as tensors; what cannot be looked at is a value, not a crash."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.helpers import picture, tiny_processor
from vlora.data.sample import Message, Sample
from vlora.errors import DataError
from vlora.model.loss import IGNORED
from vlora.train.looks import Broken, Collator, Look, Looks, Task, augmented, hand
from vlora.train.order import Pick


class Fixed:
    """A source of given samples; what is no sample is raised."""

    name, augment = "fixed", False

    def __init__(self, *samples: Sample | DataError) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        if isinstance(sample, DataError):
            raise sample
        return sample

    @property
    def blocks(self) -> list[int]:
        return [len(self.samples)]

    def length(self, index: int) -> int:
        return 1


def sample(number: int, *images: Any, texts: int = 1) -> Sample:
    marks = "<image>" * len(images)
    asked = tuple((Message("user", f"{marks}what {n}"), Message("assistant", "this")) for n in range(texts))
    return Sample(str(number), images, asked, f"file, line {number}")


def png(seed: int) -> bytes:
    import io

    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def looks(*samples: Sample | DataError, per_look: int = 1, max_tokens: int | None = None) -> list[Any]:
    all_of = Looks([Fixed(*samples)], tiny_processor(), per_look=per_look, max_tokens=max_tokens, seed=0)
    return [all_of[Task(Pick(0, index, 0), 1.0)] for index in range(len(samples))]


def test_a_look_has_its_images_and_texts() -> None:
    one, none, two = looks(sample(1, png(1), texts=3), sample(2), sample(3, png(2), png(3)), per_look=2)
    assert (one.id, len(one.pixels), len(one.texts)) == ("fixed/1", 1, 2)
    assert (len(none.pixels), len(none.texts)) == (0, 1)
    assert [pixels.shape for pixels in two.pixels] == [(3, 32, 32)] * 2
    ids, labels = one.texts[0]
    assert len(ids) == len(labels)
    assert any(label != IGNORED for label in labels)
    text = tiny_processor().tokenizer.decode(ids)
    assert "what" in text
    assert "<image>" not in text


def test_a_broken_image_and_a_useless_sample_are_told() -> None:
    broken, missing, useless = looks(sample(1, b"noise"), sample(2, "/nowhere.png"), DataError("line 3: nothing"))
    assert isinstance(broken, Broken)
    assert (broken.id, broken.where) == ("fixed/1", "file, line 1")
    assert "does not exist" in missing.reason
    assert isinstance(useless, DataError)
    batch = Collator(pad=0)([useless])
    assert batch["seen"].failure is useless


@pytest.mark.parametrize(("conversations", "size"), [(1, 1), (3, 5), (7, 2), (8, 4), (5, 5)])
def test_conversations_are_dealt_out_in_turns(conversations: int, size: int) -> None:
    visits = -(-conversations // min(size, conversations))
    for turn in range(3):
        hands = [hand(Pick(0, 4, turn * visits + v), conversations, size=size, seed=1) for v in range(visits)]
        assert {len(one) for one in hands} == {min(size, conversations)}
        assert all(len(set(one)) == len(one) for one in hands)
        assert set().union(*hands) == set(range(conversations))
        times = Counter(number for one in hands for number in one)
        assert sum(times.values()) - conversations < size


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


def look(name: str, images: int, texts: int, weight: float = 1.0) -> Look:
    words = [([1, 2, 3], [IGNORED, 2, 3]), ([4, 5], [IGNORED, 5]), ([6], [6])]
    tokens = sum(len(ids) for ids, _ in words[:texts])
    return Look(name, [torch.full((3, 4, 4), float(n)) for n in range(images)], words[:texts], weight, tokens)


def test_rows_in_the_order_of_their_images_need_no_index() -> None:
    batch = Collator(pad=9)([look("a", 1, 2, weight=3.0), look("b", 1, 2)])
    assert batch["pixel_values"].shape == (2, 3, 4, 4)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 9]] * 2
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]] * 2
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [IGNORED, 5, IGNORED]] * 2
    assert batch["loss_weights"].tolist() == [1.5, 1.5, 0.5, 0.5]
    assert "image_index" not in batch
    assert (batch["seen"].images, batch["seen"].rows, batch["seen"].tokens) == (2, 4, 10)


def test_other_rows_say_what_they_look_at() -> None:
    broken = Broken("x", "file", "damaged")
    batch = Collator(pad=9)([look("a", 1, 1), look("b", 0, 2), broken, look("c", 2, 1)])
    assert batch["image_index"].tolist() == [[0, -1], [1, 2], [-1, -1], [-1, -1]]
    assert batch["seen"].broken == [broken]
    assert batch["seen"].ids == ["a", "c", "b"]


def test_looks_come_by_the_length_of_their_texts() -> None:
    batch = Collator(pad=9)([look("long", 1, 2), look("short", 1, 1, weight=4.0), look("long too", 1, 2)])
    assert batch["seen"].ids == ["short", "long", "long too"]
    assert batch["input_ids"].tolist() == [[1, 2, 3], *([[1, 2, 3], [4, 5, 9]] * 2)]
    assert batch["loss_weights"].tolist() == [4.0, 0.5, 0.5, 0.5, 0.5]
    assert batch["image_index"].tolist() == [[0], [1], [1], [2], [2]]


@pytest.mark.parametrize("items", [[], [Broken("x", "file", "damaged")]])
def test_a_process_without_a_look_takes_part_all_the_same(items: list[Any]) -> None:
    batch = Collator(pad=9)(items)
    assert batch["input_ids"].tolist() == [[9]]
    assert batch["labels"].tolist() == [[IGNORED]]
    assert batch["loss_weights"].tolist() == [0.0]
    assert batch["seen"].rows == 0
