"""Grounds, and things put on them."""

from __future__ import annotations

import random
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ...images import open_image
from .base import SIZE, Split, parted
from .fetch import folder
from .unpack import trimmed

RGB = tuple[int, int, int]


def plain_ground(dice: random.Random) -> Image.Image:
    """A light or pale ground without a thing on it: one colour, a slope, or soft noise."""
    kind = dice.random()
    first = _pale(dice)
    if kind < 0.5:
        return Image.new("RGB", (SIZE, SIZE), first)
    if kind < 0.75:
        return _grid([[first, first], [_pale(dice)] * 2])
    strength = dice.randint(4, 20)
    return _grid([[_near(first, strength, dice) for _ in range(12)] for _ in range(12)])


def any_ground(dice: random.Random, split: Split) -> Image.Image:
    """Any ground: plain of any colour, sloped, rough, striped, or a piece of a photograph."""
    kind = dice.random()
    if kind < 0.3:
        return plain_ground(dice)
    if kind < 0.4:
        return Image.new("RGB", (SIZE, SIZE), _any(dice))
    if kind < 0.5:
        return _grid([[_any(dice) for _ in range(2)] for _ in range(2)])
    if kind < 0.6:
        return _grid([[_near(_any(dice), 40, dice) for _ in range(9)] for _ in range(9)])
    if kind < 0.7:
        return _stripes(dice)
    photograph = dice.choice(_photographs(split))
    side = dice.randint(SIZE, min(photograph.size))
    left, top = (dice.randint(0, whole - side) for whole in photograph.size)
    return photograph.resize((SIZE, SIZE), Image.Resampling.BILINEAR, (left, top, left + side, top + side))


def paste(
    thing: Image.Image,
    ground: Image.Image,
    dice: random.Random,
    *,
    sizes: tuple[float, float],
    turn: float,
    mirror: bool = False,
) -> Image.Image:
    """A thing at a random place of a ground.

    Args:
        thing: with an alpha channel.
        ground: is not changed.
        dice: draws size, place and angle.
        sizes: of the thing's longer side, over the ground's.
        turn: degrees, at most, to either side.
        mirror: every second thing has its left on the right.
    """
    if mirror and dice.random() < 0.5:
        thing = ImageOps.mirror(thing)
    if turn:
        thing = thing.rotate(dice.uniform(-turn, turn), Image.Resampling.BICUBIC, expand=True)
    scale = dice.uniform(*sizes) * SIZE / max(thing.size)
    width, height = (max(1, min(SIZE, round(side * scale))) for side in thing.size)
    thing = thing.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    picture = ground.copy()
    picture.paste(thing, (dice.randint(0, SIZE - width), dice.randint(0, SIZE - height)), thing)
    return picture


@lru_cache(maxsize=8192)
def cut_out(path: str) -> Image.Image:
    """A picture of the set without its empty border, with an alpha channel, at most twice as large as it is ever shown.

    Args:
        path: below the folder of the set.
    """
    with Image.open(folder() / path) as picture:
        return trimmed(picture, 2 * SIZE)  # the fetch has done so with stamps and clip art, whose files are large


@cache
def _photographs(split: Split) -> list[Image.Image]:
    places = sorted((folder() / "backgrounds").iterdir())
    known, new = parted(places, "backgrounds", name=lambda place: place.stem)
    return [_scaled(open_image(place)) for place in (new if split == "test" else known)]


def _scaled(photograph: Image.Image) -> Image.Image:
    return photograph.resize((round(256 * photograph.width / photograph.height), 256))


def _pale(dice: random.Random) -> RGB:
    return dice.randint(205, 255), dice.randint(205, 255), dice.randint(205, 255)


def _any(dice: random.Random) -> RGB:
    return dice.randint(0, 255), dice.randint(0, 255), dice.randint(0, 255)


def _near(colour: RGB, distance: int, dice: random.Random) -> RGB:
    red, green, blue = (max(0, min(255, one + dice.randint(-distance, distance))) for one in colour)
    return red, green, blue


def _grid(colours: list[list[RGB]]) -> Image.Image:
    small = Image.fromarray(np.array(colours, dtype=np.uint8))
    return small.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def _stripes(dice: random.Random) -> Image.Image:
    picture = Image.new("RGB", (SIZE, SIZE), _any(dice))
    draw, other, step = ImageDraw.Draw(picture), _any(dice), dice.randint(8, 32)
    upright = dice.random() < 0.5
    for place in range(0, SIZE, step):
        near, far = place, place + step // 2
        draw.rectangle((near, 0, far, SIZE) if upright else (0, near, SIZE, far), fill=other)
    return picture
