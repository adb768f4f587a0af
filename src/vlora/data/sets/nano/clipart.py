"""Drawings of Open Clip Art in seven topics; the test shows drawings that training has not."""

from __future__ import annotations

import hashlib
import random
from functools import cache

from .base import Picture, PictureSet, Split, Turn, both, parted
from .canvas import cut_out, paste, plain_ground
from .fetch import folder

TOPICS = ("animals", "buildings", "food", "people", "plants", "tools", "transportation")
"""The folders, which are the answers."""


class Clipart(PictureSet):
    """One drawing each; every topic is as frequent as the others."""

    name = "clipart"

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self.usable: dict[str, list[str]] = {}
        for topic, paths in drawings().items():
            known, new = parted(paths, "clipart", name=str)
            self.usable[topic] = new if split == "test" else known

    def draw(self, dice: random.Random, number: int) -> Picture:
        """See `PictureSet`."""
        topic = TOPICS[number % len(TOPICS)]
        path = dice.choice(self.usable[topic])
        image = paste(cut_out(f"clipart/{path}"), plain_ground(dice), dice, sizes=(0.7, 1.0), turn=5)
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
