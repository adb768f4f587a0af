"""Cut-out photographs and drawings with captions, put on a ground; the answer is the head noun of the caption.

The test shows known stamps on grounds that training has not, and in turn held-out stamps of a kind that it knows
(another bear, another apple).
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from .base import Picture, PictureSet, Turn, a, held_out, yes_no
from .canvas import any_ground, cropped, paste
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

    def draw(self, dice: random.Random, number: int) -> Picture:
        """See `PictureSet`."""
        kept = set(held_out("stamps"))
        new = self.split == "test" and number % 2 == 1
        shown = dice.choice([one for one in stamps() if (one.path in kept) == new])
        image = paste(_cut_out(shown.path), any_ground(dice, self.split), dice, sizes=(0.55, 0.95), turn=10)
        task = "stamps/held-out-" if new else "stamps/"
        nouns = [one for one in kinds() if one != shown.noun]
        said = shown.noun if dice.random() < 0.5 else dice.choice(nouns)
        wordings = ("is there {thing}?", "do you see {thing}?", "does the picture show {thing}?")
        turns = (
            Turn(
                task + "noun", dice.choice(("what is this?", "what is in the picture?", "name the thing.")), shown.noun
            ),
            Turn(task + "yes-no", *yes_no(wordings, said == shown.noun, dice, thing=a(said))),
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


@cache
def kinds() -> dict[str, list[Stamp]]:
    """The stamps of each head noun."""
    found: dict[str, list[Stamp]] = defaultdict(list)
    for one in stamps():
        found[one.noun].append(one)
    return dict(found)


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


@cache
def _cut_out(path: str) -> Image.Image:
    with Image.open(folder() / "stamps" / Path(path)) as picture:
        return cropped(picture)
