"""Crowds: scenes of three to five unlike shapes, asked chiefly for which colour goes with which shape.

For training: the suite asks for colours and shapes among all of `scenes`. Where one thing is shown nano hardly errs;
where three or four are, one answer in six was wrong. Few questions of `scenes` ask for that, and one word says little
about it: here an answer may name two things, and a no is mostly put together of what is there.
"""

from __future__ import annotations

import random
from itertools import product

from .base import Turn
from .scenes import (
    Pair,
    Scenes,
    Thing,
    anywhere,
    ask_caption,
    ask_colour,
    ask_count,
    ask_place,
    ask_presence,
    ask_relation,
    ask_shape,
    in_cells,
    presence,
    single_answers,
)

_SIZES = (3, 3, 4, 4, 5)


class Crowds(Scenes):
    """Three to five unlike shapes each."""

    name = "crowds"

    def things(self, dice: random.Random) -> list[Thing]:
        """See `Scenes`."""
        chosen = dice.choice((_unlike, _akin))(dice, self.pairs, dice.choice(_SIZES))
        if self.needed and not {*chosen} & {*self.needed}:
            chosen[dice.randrange(len(chosen))] = dice.choice(self.needed)
        return dice.choice((anywhere, in_cells))(chosen, dice)

    def turns(self, things: list[Thing], dice: random.Random) -> list[Turn]:
        """See `Scenes`."""
        asked = [turn for _ in range(3) for ask in (ask_colour, ask_shape) for turn in ask(things, dice)]
        asked += [turn for _ in range(2) for ask in (ask_two_colours, ask_two_shapes) for turn in ask(things, dice)]
        asked += [turn for _ in range(2) for turn in ask_swapped(things, self.pairs, dice)]
        asked += [turn for ask in (ask_presence, ask_count, ask_count) for turn in ask(things, self.pairs, dice)]
        return asked + [turn for ask in (ask_relation, ask_place, ask_caption) for turn in ask(things, dice)]


SET = Crowds


def _unlike(dice: random.Random, pairs: list[Pair], count: int) -> list[Pair]:
    """Any pairs."""
    return dice.sample(pairs, count)


def _akin(dice: random.Random, pairs: list[Pair], count: int) -> list[Pair]:
    """Pairs of three colours and four shapes, so that a thing shares either with another."""
    colours = dice.sample(sorted({colour for colour, _ in pairs}), 3)
    shapes = dice.sample(sorted({shape for _, shape in pairs}), 4)
    return dice.sample([pair for pair in product(colours, shapes) if pair in pairs], count)


def ask_two_colours(things: list[Thing], dice: random.Random) -> list[Turn]:
    """The colours of two things, in one answer."""
    return _follow(
        "scenes/colours", [(one.shape, one.colour) for one in things], "what colors are the {} and the {}?", dice
    )


def ask_two_shapes(things: list[Thing], dice: random.Random) -> list[Turn]:
    """The shapes of two things, in one answer."""
    return _follow("scenes/shapes", [(one.colour, one.shape) for one in things], "what shapes are {} and {}?", dice)


def _follow(task: str, facts: list[tuple[str, str]], question: str, dice: random.Random) -> list[Turn]:
    """Ask for the second words of two facts by the first, if each has but one answer."""
    answers = single_answers(facts)
    if len(answers) < 2:
        return []
    (one, answer), (other, second) = dice.sample([*answers.items()], 2)
    return [Turn(task, question.format(one, other), f"{answer} and {second}")]


def ask_swapped(things: list[Thing], pairs: list[Pair], dice: random.Random) -> list[Turn]:
    """Is there one with the colour of one thing and the shape of another? Half of the answers are yes."""
    shown = [thing.pair for thing in things]
    others = [(one, other) for (one, _), (_, other) in product(shown, repeat=2)]
    absent = [pair for pair in others if pair not in shown and pair in pairs]
    truth = not absent or dice.random() < 0.5
    return presence(dice.choice(shown if truth else absent), truth, dice)
