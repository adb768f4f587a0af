"""Drawings of Open Clip Art in seven topics; the test shows drawings that training has not.

The topics of some have fewer than a hundred drawings, so training shows emoji and stamps of these topics as well.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from .base import Picture, PictureSet, Split, Turn, both, parted
from .canvas import cut_out, paste, plain_ground
from .emoji import EmojiSet
from .fetch import folder
from .stamps import Stamps

TOPICS = ("animals", "buildings", "food", "people", "plants", "tools", "transportation")
"""The folders, which are the answers."""

EMOJI = {
    "animals": ("animal-",),
    "buildings": ("place-building", "place-religious"),
    "food": ("food-", "drink"),
    "people": ("person", "family"),
    "plants": ("plant-",),
    "tools": ("tool",),
    "transportation": ("transport-ground", "transport-air", "transport-water"),
}
"""Kinds of emoji that are of a topic: what their names begin with."""

STAMPS = {
    "animals": ("animals/",),
    "buildings": ("town/houses/",),
    "food": ("food/",),
    "people": ("people/",),
    "plants": ("plants/",),
    "tools": ("household/tools/",),
    "transportation": ("vehicles/",),
}
"""Folders of stamps that are of a topic: what their paths begin with."""

_BESIDE = 0.5
"""How often training shows an emoji or a stamp, each half of the time."""


class Clipart(PictureSet):
    """One drawing each; every topic is as frequent as the others."""

    name = "clipart"

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self.usable: dict[str, list[str]] = {}
        for topic, paths in drawings().items():
            known, new = parted(paths, "clipart", name=str)
            self.usable[topic] = [f"clipart/{path}" for path in (new if split == "test" else known)]
        beside: list[dict[str, list[str]]] = []
        if split == "train":
            emoji = [(one.kind, one.in_training) for one in EmojiSet(split).known]
            stamps = [(one.path, (f"stamps/{one.path}",)) for one in Stamps(split).known]
            beside = [_by_topic(emoji, EMOJI), _by_topic(stamps, STAMPS)]
        self.beside = {topic: [paths[topic] for paths in beside if paths[topic]] for topic in TOPICS}

    def draw(self, dice: random.Random, number: int) -> Picture:
        """See `PictureSet`."""
        topic = TOPICS[number % len(TOPICS)]
        path = dice.choice(self.usable[topic])
        if self.beside[topic] and dice.random() < _BESIDE:
            path = dice.choice(dice.choice(self.beside[topic]))
        mirror = self.split == "train"
        image = paste(cut_out(path), plain_ground(dice), dice, sizes=(0.7, 1.0), turn=5, mirror=mirror)
        other = dice.choice([one for one in TOPICS if one != topic])
        question = dice.choice(("what is the topic of the drawing?", "which topic is this?"))
        turns = (
            Turn("clipart/topic", question, topic),
            Turn("clipart/either", f"is the topic {' or '.join(dice.sample((topic, other), 2))}?", topic),
            *both("clipart/yes-no", ("is the topic {topic}?",), dice, topic=(topic, other)),
        )
        return Picture(image, turns)


SET = Clipart


@cache
def drawings() -> dict[str, list[str]]:
    """Paths below the folder of clip art, by topic, in order.

    The package has some drawings several times: of those of one topic the first is taken, those of two topics are left
    out. So a drawing is in one topic and one split.
    """
    root = folder() / "clipart"
    found: dict[bytes, list[tuple[str, str]]] = {}
    for topic in TOPICS:
        for place in sorted((root / topic).rglob("*.png")):
            content = hashlib.sha256(place.read_bytes()).digest()
            found.setdefault(content, []).append((topic, place.relative_to(root).as_posix()))
    kept: dict[str, list[str]] = {topic: [] for topic in TOPICS}
    for same in found.values():
        if len({topic for topic, _ in same}) == 1:
            kept[same[0][0]].append(same[0][1])
    return {topic: sorted(paths) for topic, paths in kept.items()}


def _by_topic(
    things: Iterable[tuple[str, Sequence[str]]], beginnings: Mapping[str, tuple[str, ...]]
) -> dict[str, list[str]]:
    """Paths by topic, of things with the name of what they are of."""
    return {
        topic: [path for name, paths in things if name.startswith(begins) for path in paths]
        for topic, begins in beginnings.items()
    }
