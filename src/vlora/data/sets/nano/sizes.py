"""Sizes: scenes of two unlike shapes, one clearly the larger, asked chiefly for which.

For training: the suite asks for sizes among all of `scenes`, which alone never taught them (0.47 right, and either of
two would be 0.5). Nor did it teach relations, until they were asked about two things at a time, and little else
(`pairs.py`).
"""

from __future__ import annotations

import random

from .pairs import Pairs
from .scenes import Pair, Thing, anywhere, ask_colour, ask_extent, ask_relation, ask_shape, ask_size, unlike_sizes


class Sizes(Pairs):
    """Two shapes each, one clearly larger than the other."""

    name = "sizes"
    asked = (*[ask_size] * 6, *[ask_extent] * 2, ask_colour, ask_shape, ask_relation)

    def place(self, chosen: list[Pair], dice: random.Random) -> list[Thing]:
        """See `Pairs`: drawn anew until the sizes differ."""
        while True:
            things = anywhere(chosen, dice)
            if unlike_sizes(*things):
                return things


SET = Sizes
