"""Counts: scenes of up to six shapes, mostly of one kind, asked chiefly for how many there are.

For training: the suite asks for counts among all of `scenes`. One or two things are hardly ever counted wrong; of five
or six, one answer in four was wrong, and mostly too small.
"""

from __future__ import annotations

import random

from .base import Turn
from .scenes import Kind, Scenes, Thing, ask_colour, ask_count, ask_shape, few, many


class Counts(Scenes):
    """Up to six shapes each."""

    name = "counts"

    def kinds(self) -> tuple[Kind, ...]:
        """See `Scenes`."""
        return many, many, many, few

    def turns(self, things: list[Thing], dice: random.Random) -> list[Turn]:
        """See `Scenes`."""
        asked = [turn for _ in range(8) for turn in ask_count(things, self.pairs, dice)]
        return asked + [turn for ask in (ask_colour, ask_shape) for turn in ask(things, dice)]


SET = Counts
