"""Many questions about many images, answered in batches.

    asked ─ distinct ─► by length of the prompt ─► batches ─► answers
                                                     ▲
    images ─ each looked at once ─► visual parameters ┘ expanded once a batch

Prompts of one length need no padding, and within one length the questions of an image are neighbours, so that few
images are expanded for a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeAlias

from PIL import Image

from ..api import Eyes
from ..data.images import open_image
from ..data.sets.nano.base import Split, open_set
from ..errors import InputError
from ..model import VisualParameters

Progress: TypeAlias = Callable[[int, int], None]
"""Told how many questions are answered, and of how many."""


class Drawn(NamedTuple):
    """A picture of the nano set, drawn when it is looked at."""

    part: str
    split: Split
    number: int

    def open(self) -> Image.Image:
        """The picture."""
        return pictures(self.part, self.split).picture(self.number).image


pictures = cache(open_set)


Shown: TypeAlias = Path | Drawn
"""An image by what finds it."""


class Asked(NamedTuple):
    """A question about an image, or about none."""

    image: Shown | None
    question: str


def predict(
    eyes: Eyes,
    asked: Sequence[Asked],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 4,
    seen: dict[Shown, VisualParameters] | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Answer every question greedily.

    Args:
        eyes: the model.
        asked: questions in any order; what is asked twice is answered once.
        batch_size: questions, and images, at a time.
        max_new_tokens: length of the longest answer.
        seen: images that this model has looked at already; those that it looks at now are added.
        progress: told after each batch.

    Returns:
        An answer to each question, in their order.

    Raises:
        InputError: an empty question, or a batch of nothing.
        ImageError: not a usable image.
    """
    if batch_size < 1:
        raise InputError(f"A batch of {batch_size} questions is not possible: give at least 1.")
    tell, times = progress or _nobody, Counter(asked)
    tell(0, len(asked))
    seen = {} if seen is None else seen
    _look(eyes, [one.image for one in times if one.image is not None], batch_size, seen)
    answers: dict[Asked, str] = {}
    done = 0
    for batch in _batches(eyes, list(times), batch_size):
        images = [None if one.image is None else seen[one.image] for one in batch]
        texts = eyes.ask(images, [one.question for one in batch], max_new_tokens=max_new_tokens)
        answers.update(zip(batch, texts, strict=True))
        done += sum(times[one] for one in batch)
        tell(done, len(asked))
    return [answers[one] for one in asked]


def _nobody(_done: int, _total: int) -> None:
    """Tell nobody."""


def _look(eyes: Eyes, images: Sequence[Shown], batch_size: int, seen: dict[Shown, VisualParameters]) -> None:
    """Look at each new image once."""
    fresh = [image for image in dict.fromkeys(images) if image not in seen]
    for start in range(0, len(fresh), batch_size):
        shown = fresh[start : start + batch_size]
        parameters = eyes.perceive([image.open() if isinstance(image, Drawn) else image for image in shown])
        seen.update((image, parameters[position]) for position, image in enumerate(shown))


def opened(image: Shown) -> Image.Image:
    """An image as a model takes it."""
    return image.open() if isinstance(image, Drawn) else open_image(image)


def _batches(eyes: Eyes, asked: Sequence[Asked], batch_size: int) -> Iterator[list[Asked]]:
    """Batches of prompts of one length; within it, the questions of an image are neighbours."""
    lengths = {question: eyes.tokens([question])["input_ids"].shape[1] for question in {one.question for one in asked}}

    def length(one: Asked) -> int:
        return lengths[one.question]

    ordered = sorted(asked, key=lambda one: (length(one), str(one.image or ""), one.question))
    for _, same in groupby(ordered, key=length):
        group = list(same)
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))
