"""What a training step reads: looks at images, each with several questions about it.

The whole run is laid out beforehand as a list of looks, a pure function of the seed: look number n is the same image,
the same questions and the same augmentation in every run, so that a resumed run goes on exactly where it was.
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..data.images import open_image
from ..data.prompts import supervised
from ..data.sets import easy_vqa
from ..model.modeling import IGNORED


class Look(NamedTuple):
    """One image with some of the questions about it."""

    image: Path
    questions: tuple[tuple[str, str], ...]
    seed: int


def plan(*, images: int, per_image: int, seed: int, limit_images: int | None = None) -> list[Look]:
    """The looks of a whole run over easy-VQA's train split.

    Every epoch shuffles the images; every image deals out its questions in turns, so that all are asked before one is
    asked again.

    Args:
        images: looks in all.
        per_image: questions of each look.
        seed: decides everything.
        limit_images: use only the first so many images.
    """
    data = easy_vqa.load("train")
    questions: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question in data.questions:
        questions[question.image_id].append((question.question, question.answer))
    ids = sorted(questions)[:limit_images]
    dealt: dict[int, list[tuple[str, str]]] = {image: [] for image in ids}
    dice = random.Random(seed)
    looks: list[Look] = []
    while len(looks) < images:
        dice.shuffle(ids)
        for image in ids[: images - len(looks)]:
            hand = dealt[image]
            while len(hand) < per_image:
                fresh = list(questions[image])
                dice.shuffle(fresh)
                hand.extend(fresh)
            chosen, dealt[image] = hand[:per_image], hand[per_image:]
            looks.append(Look(data.image_path(image), tuple(chosen), dice.getrandbits(32)))
    return looks


class Looks(Dataset[dict[str, Any]]):
    """Looks as tensors.

    Args:
        looks: see `plan`.
        processor: the model's.
        augment: mirror, shift and scale at random.
    """

    def __init__(self, looks: list[Look], processor: Any, *, augment: bool) -> None:
        self.looks, self.processor, self.augment = looks, processor, augment

    def __len__(self) -> int:
        return len(self.looks)

    def __getitem__(self, number: int) -> dict[str, Any]:
        look = self.looks[number]
        image = open_image(look.image)
        if self.augment:
            image = augmented(image, random.Random(look.seed))
        pixels = self.processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        return {"pixels": pixels, "texts": [supervised(q, a, self.processor) for q, a in look.questions]}


def augmented(image: Image.Image, dice: random.Random) -> Image.Image:
    """Mirror, shift and scale; nothing that could change a colour or a shape.

    The border colour continues outside, so that no edge appears.
    """
    if dice.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if dice.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    scale = dice.uniform(0.8, 1.1)
    width, height = image.size
    shift_x, shift_y = (dice.uniform(-0.05, 0.05) * side for side in image.size)
    corner = image.getpixel((0, 0))
    matrix = (1 / scale, 0, shift_x + width * (1 - 1 / scale) / 2, 0, 1 / scale, shift_y + height * (1 - 1 / scale) / 2)
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=corner
    )


class Collator:
    """Looks -> a batch in which consecutive rows share an image: `n` images, `n · questions` rows.

    Args:
        pad: token id of padding.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        texts = [text for sample in samples for text in sample["texts"]]
        width = max(len(ids) for ids, _ in texts)
        ids = torch.full((len(texts), width), self.pad)
        labels = torch.full((len(texts), width), IGNORED)
        mask = torch.zeros(len(texts), width, dtype=torch.long)
        for row, (tokens, targets) in enumerate(texts):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, : len(tokens)] = torch.tensor(targets)
            mask[row, : len(tokens)] = 1
        pixels = torch.stack([sample["pixels"] for sample in samples])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": pixels}
