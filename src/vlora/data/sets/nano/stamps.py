"""Cut-out photographs and drawings with captions, put on a ground; the answer is the head noun of the caption.

The test shows known stamps on grounds that training has not, and in turn held-out stamps of a kind that it knows
(another bear, another apple).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache

from .base import PRESENCE, Picture, PictureSet, Split, Turn, a, both, parted
from .canvas import any_ground, cut_out, paste
from .fetch import folder

_BEGINNING = re.compile(
    r"^(?:an?|the|two|some|our) (?:(?:pair|couple|bunch|head|cluster|string|baby|plant) of )?(?:an? )?"
)
_END = re.compile(
    r" (?:with|in|from|of|for|to|on|at|as|that|this|hatched|inside|playing|dancing|covered|used|making|carry)\b.*"
)
_ODD = re.compile(r"(?:, (?:also|from|or) | is | lets | are |: |;|—|–|[.!?] ).*")

_COMPOUNDS = ("sea lion", "guinea fowl", "grave marker", "cemetery marker", "post box")
"""Things that their last word does not name: a sea lion is no lion."""


@dataclass(frozen=True)
class Stamp:
    """One stamp.

    Args:
        path: below the folder of stamps.
        noun: the head noun of its caption.
        caption: without article and period, lower case.
    """

    path: str
    noun: str
    caption: str


class Stamps(PictureSet):
    """One stamp each."""

    name = "stamps"

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self.known, self.new = parted(stamps(), "stamps", name=lambda one: one.path)
        self.nouns = list(dict.fromkeys(one.noun for one in stamps()))

    def draw(self, dice: random.Random, number: int) -> Picture:
        """See `PictureSet`."""
        new = self.split == "test" and number % 2 == 1
        shown = dice.choice(self.new if new else self.known)
        mirror = self.split == "train"
        image = paste(
            cut_out(f"stamps/{shown.path}"),
            any_ground(dice, self.split),
            dice,
            sizes=(0.55, 0.95),
            turn=10,
            mirror=mirror,
        )
        task = "stamps/held-out-" if new else "stamps/"
        others = [one for one in self.nouns if one != shown.noun]
        turns = (
            Turn(
                task + "noun", dice.choice(("what is this?", "what is in the picture?", "name the thing.")), shown.noun
            ),
            *both(task + "yes-no", PRESENCE, dice, thing=(a(shown.noun), a(dice.choice(others)))),
            Turn(task + "caption", dice.choice(("describe the picture.", "what do you see?")), a(shown.caption)),
        )
        return Picture(image, turns)


SET = Stamps


@cache
def stamps() -> tuple[Stamp, ...]:
    """Those whose caption says, in a few words, what they show; in the order of their paths."""
    root, found = folder() / "stamps", list[Stamp]()
    for place in sorted(root.rglob("*.png")):
        text = place.with_suffix(".txt")
        caption = said(text.read_text(encoding="utf-8").split("\n", 1)[0]) if text.is_file() else ""
        if caption:
            found.append(Stamp(place.relative_to(root).as_posix(), head_noun(caption), caption))
    return tuple(found)


def said(caption: str) -> str:
    """What a caption says is shown: without article, aside and exclamation; nothing where it tells a story."""
    text = re.sub(r"\s*\(.*?\)|[“”\"']", "", caption.replace("’", "'")).strip().lower()
    text = _ODD.sub("", text.rstrip(".!?")).rstrip(".!? ")
    begun = _BEGINNING.match(text)
    text = text[begun.end() :].replace(",", "") if begun else ""
    return text if 1 <= len(text.split()) <= 5 and re.fullmatch(r"[a-z -]+", text) else ""


def head_noun(said: str) -> str:
    """The noun that the words about a thing hang on."""
    text = _END.sub("", said)
    return next((one for one in _COMPOUNDS if text.endswith(one)), text.split()[-1])
