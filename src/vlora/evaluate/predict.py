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
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ..api import Eyes
from ..errors import InputError
from ..model import VisualParameters

Progress: TypeAlias = Callable[[int, int], None]
"""Told how many questions are answered, and of how many."""


class Asked(NamedTuple):
    """A question about an image, or about none."""

    image: Path | None
    question: str


def predict(
    eyes: Eyes,
    asked: Sequence[Asked],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 4,
    progress: Progress | None = None,
) -> list[str]:
    """Answer every question greedily.

    Args:
        eyes: the model.
        asked: questions in any order; what is asked twice is answered once.
        batch_size: questions, and images, at a time.
        max_new_tokens: length of the longest answer.
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
    seen = _look(eyes, [one.image for one in times if one.image is not None], batch_size)
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


def _look(eyes: Eyes, images: Sequence[Path], batch_size: int) -> dict[Path, VisualParameters]:
    """Look at each distinct image once."""
    distinct = list(dict.fromkeys(images))
    seen: dict[Path, VisualParameters] = {}
    for start in range(0, len(distinct), batch_size):
        paths = distinct[start : start + batch_size]
        parameters = eyes.perceive(list(paths))
        seen.update((path, parameters[position]) for position, path in enumerate(paths))
    return seen


def _batches(eyes: Eyes, asked: Sequence[Asked], batch_size: int) -> Iterator[list[Asked]]:
    """Batches of prompts of one length; within it, the questions of an image are neighbours."""
    lengths = {question: eyes.tokens([question])["input_ids"].shape[1] for question in {one.question for one in asked}}

    def length(one: Asked) -> int:
        return lengths[one.question]

    ordered = sorted(asked, key=lambda one: (length(one), str(one.image or ""), one.question))
    for _, same in groupby(ordered, key=length):
        group = list(same)
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))
