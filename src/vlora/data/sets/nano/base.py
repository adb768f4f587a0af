"""What the sets share: a picture, the turns about it, and what is held out of training."""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any, Literal, TypeAlias, TypeVar

from PIL import Image

from vlora.errors import InputError

T = TypeVar("T")

Split: TypeAlias = Literal["train", "test"]

SIZE = 128
"""Pixels of a picture's side: what nano's encoder reads."""

PRESENCE = ("is there {thing}?", "do you see {thing}?", "does the picture show {thing}?")
"""Wordings of whether something is shown."""

LEAST = 4
"""Turns of every picture, at the least: as many as training asks about one look, so that its batches are regular."""

SETS = ("scenes", "pairs", "sizes", "crowds", "counts", "digits", "emoji", "stamps", "nouns", "clipart", "texts")
"""The sets by name; each is a file of this folder, with its class as `SET`."""


@dataclass(frozen=True)
class Turn:
    """A question, and its one right answer.

    Args:
        task: what of the suite it belongs to.
        question: about the picture.
        answer: in lower case, without a period.
    """

    task: str
    question: str
    answer: str


@dataclass(frozen=True)
class Picture:
    """A picture `[SIZE, SIZE]`, and all that is asked about it."""

    image: Image.Image
    turns: tuple[Turn, ...]


class PictureSet(ABC):
    """Pictures of one kind.

    Args:
        split: `train` never shows what `held_out.json` names; `test` of each task shows what its name says.
    """

    name: str

    def __init__(self, split: Split) -> None:
        self.split: Split = split

    def picture(self, number: int) -> Picture:
        """The picture of a number; the same whenever it is drawn."""
        return self.draw(random.Random(f"{self.name} {self.split} {number}"), number)

    @abstractmethod
    def draw(self, dice: random.Random, number: int) -> Picture:
        """Draw one.

        Args:
            dice: seeded by set, split and number.
            number: for what takes turns.
        """


def open_set(name: str, split: Split) -> PictureSet:
    """A set by its name.

    Raises:
        InputError: there is no such set or split.
        MissingDependency: its pictures have not been fetched.
    """
    if name not in SETS:
        raise InputError(f"The nano set has no part {name!r}: choose from {', '.join(SETS)}.")
    if split not in ("train", "test"):
        raise InputError(f"The nano set has no split {split!r}: give 'train' or 'test'.")
    made: PictureSet = import_module(f"{__package__}.{name}").SET(split)
    return made


@cache
def held_out(part: str) -> Any:
    """What of a part only the test may show."""
    return json.loads((files("vlora.data.sets.nano") / "held_out.json").read_text(encoding="utf-8"))[part]


def parted(things: Iterable[T], part: str, *, name: Callable[[T], Any]) -> tuple[list[T], list[T]]:
    """Those that training shows, and those that are held out.

    Args:
        things: in their order.
        part: of `held_out.json`.
        name: of a thing, as it is listed there.
    """
    kept = set(held_out(part))
    known: list[T] = []
    new: list[T] = []
    for thing in things:
        (new if name(thing) in kept else known).append(thing)
    return known, new


def yes_no(wordings: Sequence[str], truth: bool, dice: random.Random, **words: str) -> tuple[str, str]:
    """A question in one of its wordings, and its answer."""
    return dice.choice(wordings).format(**words), "yes" if truth else "no"


def both(task: str, wordings: Sequence[str], dice: random.Random, **words: tuple[str, str]) -> list[Turn]:
    """A question whose answer is yes, and one whose answer is no: about the first, and the second, of the words."""
    return [
        Turn(task, *yes_no(wordings, truth, dice, **{name: pair[not truth] for name, pair in words.items()}))
        for truth in (True, False)
    ]


def a(noun: str) -> str:
    """A noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
