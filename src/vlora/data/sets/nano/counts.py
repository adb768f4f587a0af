"""Counts: scenes of up to six shapes, mostly of one kind, asked chiefly for how many there are.

For training: the suite asks for counts among all of `scenes`. One or two things are hardly ever counted wrong; of five
or six, one answer in four was one too few.
"""

from __future__ import annotations

import random

from .base import LEAST, Picture
from .scenes import Scenes, ask_colour, ask_count, ask_presence, ask_shape, few, many, painted


class Counts(Scenes):
    """Up to six shapes each."""

    name = "counts"

    def draw(self, dice: random.Random, number: int) -> Picture:
        """See `PictureSet`."""
        needed = dice.choice(self.needed) if self.needed else None
        things = dice.choice((many, many, many, few))(dice, self.pairs, needed)
        asked = [turn for _ in range(8) for turn in ask_count(things, self.pairs, dice)]
        asked += [turn for ask in (ask_colour, ask_shape) for turn in ask(things, dice)]
        turns = dict.fromkeys(asked)
        while len(turns) < LEAST:
            turns |= dict.fromkeys(ask_presence(things, self.pairs, dice))
        return Picture(painted(things, dice), tuple(turns))


SET = Counts
