"""Pairs: scenes of two unlike shapes, asked chiefly for how the two stand to each other.

For training: the suite asks for relations among all of `scenes`. Whether one thing is left of another takes finding
both, and says one bit about either. Among other kinds of scenes and questions it was hardly learned; 20 000 texts about
two things were enough (docs/log.md).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .base import Turn
from .scenes import (
    Pair,
    Scenes,
    Thing,
    anywhere,
    ask_colour,
    ask_place,
    ask_relation,
    ask_shape,
    ask_side,
    ask_size,
    in_cells,
)


class Pairs(Scenes):
    """Two shapes each."""

    name = "pairs"
    asked: tuple[Callable[[list[Thing], random.Random], list[Turn]], ...] = (
        *[ask_relation] * 6,
        *[ask_side] * 2,
        ask_colour,
        ask_shape,
        ask_place,
        ask_size,
    )
    """What is asked of each, and how often."""

    def things(self, dice: random.Random) -> list[Thing]:
        """See `Scenes`."""
        chosen = dice.sample(self.pairs, 2)
        if self.needed:
            chosen[dice.randrange(2)] = dice.choice([pair for pair in self.needed if pair not in chosen])
        return self.place(chosen, dice)

    def place(self, chosen: list[Pair], dice: random.Random) -> list[Thing]:
        """Give two shapes their places and sizes."""
        return dice.choice((anywhere, in_cells))(chosen, dice)

    def turns(self, things: list[Thing], dice: random.Random) -> list[Turn]:
        """See `Scenes`."""
        return [turn for ask in self.asked for turn in ask(things, dice)]


SET = Pairs
