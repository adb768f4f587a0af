"""Nouns: what stamps are called, as others draw it; emoji of all artists of training, and drawings of Open Clip Art.

For training: a stamp's noun has mostly one other stamp there. By a linear probe of the encoder's features 0.28 of the
held-out stamps are called right after the stamps alone, and 0.34 with these beside them (docs/log.md).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from .base import PRESENCE, Picture, PictureSet, Split, Turn, a, both
from .canvas import any_ground, cut_out, paste
from .clipart import Clipart
from .emoji import EmojiSet
from .stamps import Stamps

_GROUPS = ("animals", "food", "travel", "activities", "objects")
"""Groups of emoji that show a thing; the others have faces, signs and buttons, whatever their last word is."""

_OTHER_THING = re.compile(
    r"\b(?:burger|chips|cichlid|computer|confetti|crew|flower|head|hot|juice|lane|oil"
    r"|opposite|pot|pupil|rental|rice|rings|speech|symbol|toast|wing)\b"
)
"""Words of a name that make its noun something else: a box of apple juice is no apple, and a hot dog no dog."""


class Nouns(PictureSet):
    """One emoji or drawing each; every noun is as frequent as the others."""

    name = "nouns"

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        known = {one.noun for one in Stamps("train").known}
        self.drawn: dict[str, list[str]] = {}
        for noun, path in (*_emoji(known), *_drawings(known)):
            self.drawn.setdefault(noun, []).append(path)
        self.nouns = sorted(self.drawn)

    def draw(self, dice: random.Random, number: int) -> Picture:
        """See `PictureSet`."""
        noun = dice.choice(self.nouns)
        path = dice.choice(self.drawn[noun])
        image = paste(
            cut_out(path), any_ground(dice, self.split), dice, sizes=(0.55, 0.95), turn=10, mirror=self.split == "train"
        )
        other = dice.choice([one for one in self.nouns if one != noun])
        # Never "what is this?" or "name this emoji.", which an emoji's own name answers.
        asked = dice.choice(("what is in the picture?", "name the thing."))
        either = f"is this {' or '.join(dice.sample((a(noun), a(other)), 2))}?"
        turns = (
            Turn("nouns/noun", asked, noun),
            *both("nouns/yes-no", PRESENCE, dice, thing=(a(noun), a(other))),
            Turn("nouns/either", either, noun),
        )
        return Picture(image, turns)


SET = Nouns


def _emoji(known: set[str]) -> Iterable[tuple[str, str]]:
    """Nouns and paths of emoji that training shows: a red apple is an apple, a cow's face a cow."""
    for one in EmojiSet("train").known:
        name = one.name.removesuffix(" face")
        words = name.split()
        noun = next((word for word in (name, words[-1]) if word in known), "")
        if one.group in _GROUPS and noun and len(words) <= 2 and not _OTHER_THING.search(" ".join(words[:-1])):
            yield from ((noun, path) for path in one.in_training)


def _drawings(known: set[str]) -> Iterable[tuple[str, str]]:
    """Nouns and paths of drawings that training shows: of those whose file's name begins with one."""
    for paths in Clipart("train").usable.values():
        for path in paths:
            noun, *words = re.findall(r"[a-z]+", PurePosixPath(path).stem.lower()) or [""]
            if noun in known and not _OTHER_THING.search(" ".join(words)) and "/roadsigns/" not in path:
                yield noun, path
