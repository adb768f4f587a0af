"""Emoji, turned, scaled and put on a ground: in training of seven sets, in the test of one of them and of another.

Whole emoji are held out, whoever drew them. An emoji is one of one code point, or a flag; those put together of
several (families, professions) differ by details that a picture of 128 pixels hardly shows.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .base import Picture, PictureSet, Split, Turn, a, both, parted
from .canvas import any_ground, cut_out, paste
from .fetch import folder

GROUPS = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
"""The groups of the standard, and the word that answers for each."""

ARTISTS = ("google", "twitter")
"""Whose emoji the test shows: training shows the first's too; the second's are for the test alone."""

OTHERS = ("blobs", "emojione", "emojione-1", "fluent", "fluent-flat", "openmoji")
"""Sets that training alone shows, beside the first's: what is drawn shall be learned, not how one artist does it."""

_OTHERS = 0.6
"""How often, of an emoji that they have."""


@dataclass(frozen=True)
class Emoji:
    """One emoji.

    Args:
        code: its code points.
        file: of its picture, below the artist's folder.
        name: lower case; of a flag, the country's with "flag of".
        group: a value of `GROUPS`.
        kind: the standard's part of a group, such as "animal-bird".
        tags: words that go with it, those first that go with most emoji; none that its name says, no codes of
            countries.
        others: pictures of it by `OTHERS`, below the folder of the set; they do not have all.
    """

    code: str
    file: str
    name: str
    group: str
    kind: str
    tags: tuple[str, ...]
    others: tuple[str, ...]

    def by(self, artist: str) -> str:
        """The path of its picture by one of `ARTISTS`, below the folder of the set."""
        return f"emoji/{artist}/{self.file}"

    @property
    def in_training(self) -> tuple[str, ...]:
        """The paths of all its pictures that training may show, below the folder of the set."""
        return self.by(ARTISTS[0]), *self.others


class EmojiSet(PictureSet):
    """One emoji each. The test shows in turn: known ones, known ones of the other artist, and held-out ones."""

    name = "emoji"

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self.known, self.new = parted(emojis(), "emoji", name=lambda one: one.code)

    def draw(self, dice: random.Random, number: int) -> Picture:
        """See `PictureSet`."""
        kind = number % 3 if self.split == "test" else 0
        shown = dice.choice(self.new if kind == 2 else self.known)
        path = shown.by(ARTISTS[kind == 1])
        if self.split == "train" and shown.others and dice.random() < _OTHERS:
            path = dice.choice(shown.others)
        image = paste(cut_out(path), any_ground(dice, self.split), dice, sizes=(0.5, 0.95), turn=15)
        task = "emoji/" + ("", "other-artist-", "held-out-")[kind]
        others = emojis() if self.split == "test" else self.known
        turns = _turns(task, shown, [one.name for one in others if one is not shown], dice)
        if self.split == "train":  # the name again, as names are the last to be learned, and what it is like others in
            turns += [_name(task, shown, dice), *_tags(task, shown, dice)]
        return Picture(image, tuple(dict.fromkeys(turns)))


SET = EmojiSet


def _turns(task: str, shown: Emoji, others: list[str], dice: random.Random) -> list[Turn]:
    group = dice.choice(("which group is this emoji of?", "what kind of emoji is this?"))
    return [
        _name(task, shown, dice),
        Turn(task + "group", group, shown.group),
        *both(task + "yes-no", ("is this {thing}?",), dice, thing=(a(shown.name), a(dice.choice(others)))),
    ]


def _name(task: str, shown: Emoji, dice: random.Random) -> Turn:
    return Turn(task + "name", dice.choice(("what is this?", "what emoji is this?", "name this emoji.")), shown.name)


def _tags(task: str, shown: Emoji, dice: random.Random) -> list[Turn]:
    question = dice.choice(("which words go with this?", "which words go with this emoji?"))
    return [Turn(task + "tags", question, ", ".join(shown.tags[:_TAGS]))] if shown.tags else []


_TAGS = 3
"""Words of an answer, at most."""


@cache
def emojis() -> tuple[Emoji, ...]:
    """Those that both artists of the test have, in the order of their code points."""
    place = folder() / "emoji"
    others = [_by_code(place, artist) for artist in OTHERS]
    labels = {_key(one["hexcode"]): one for one in _rows(place / "labels.json")}
    often = Counter(tag for one in labels.values() for tag in one.get("tags", ()))
    found: list[Emoji] = []
    for row in _rows(place / "emoji.json"):
        code = str(row["unified"])
        key = _key(code)
        label = labels.get(key)
        group = GROUPS.get(row["category"])
        whole = row["has_img_google"] and row["has_img_twitter"] and "200D" not in code
        if whole and group and label:
            name = label["label"].lower().replace("flag: ", "flag of ")
            words = {tag for tag in label.get("tags", ()) if tag.isalpha() and tag.islower()} - {*name.split()}
            tags = tuple(sorted(words, key=lambda tag: (-often[tag], tag)))
            drawn = tuple(files[key] for files in others if key in files)
            found.append(Emoji(code, row["image"], name, group, row["subcategory"], tags, drawn))
    return tuple(sorted(found, key=lambda one: one.code))


def _by_code(place: Path, artist: str) -> dict[str, str]:
    return {_key(path.stem): f"emoji/{artist}/{path.name}" for path in sorted((place / artist).iterdir())}


def _key(code: str) -> str:
    """Code points without the one that asks for colours, which some write and some leave out."""
    return code.lower().replace("-fe0f", "")


def _rows(place: Path) -> list[dict[str, Any]]:
    return json.loads(place.read_text(encoding="utf-8"))
