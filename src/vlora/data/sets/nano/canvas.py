"""Grounds that things are put on."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from .base import SIZE

RGB = tuple[int, int, int]


def plain_ground(dice: random.Random) -> Image.Image:
    """A pale ground without a thing on it: one colour, a slope, or soft noise; `[SIZE, SIZE]`."""
    kind = dice.random()
    first = _pale(dice)
    if kind < 0.5:
        return Image.new("RGB", (SIZE, SIZE), first)
    if kind < 0.75:
        return _grid([[first, first], [_pale(dice)] * 2])
    strength = dice.randint(4, 20)
    return _grid([[_near(first, strength, dice) for _ in range(12)] for _ in range(12)])


def _pale(dice: random.Random) -> RGB:
    return dice.randint(205, 255), dice.randint(205, 255), dice.randint(205, 255)


def _near(colour: RGB, distance: int, dice: random.Random) -> RGB:
    red, green, blue = (max(0, min(255, one + dice.randint(-distance, distance))) for one in colour)
    return red, green, blue


def _grid(colours: list[list[RGB]]) -> Image.Image:
    small = Image.fromarray(np.array(colours, dtype=np.uint8))
    return small.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
