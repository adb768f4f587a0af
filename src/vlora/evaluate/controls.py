"""What a model without eyes would score: a claim to see starts above these.

question-only   the most frequent answer to each question in the train split; no model
shuffled        the model looks, but at the image of another question
no-image        the bare language model
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, get_args

from ..errors import InputError

Control: TypeAlias = Literal["none", "shuffled", "no-image", "question-only"]

CONTROLS: tuple[Control, ...] = get_args(Control)
"""All controls; `none` is the real thing."""


def most_frequent(pairs: Iterable[tuple[str, str]], questions: Sequence[str]) -> list[str]:
    """Answer each question by its most frequent answer, a new one by the most frequent answer of all.

    Args:
        pairs: (question, answer) to learn from; of equally frequent answers, the first seen.
        questions: to be answered.

    Raises:
        InputError: nothing to learn from.
    """
    by_question: dict[str, Counter[str]] = {}
    overall: Counter[str] = Counter()
    for question, answer in pairs:
        by_question.setdefault(question, Counter())[answer] += 1
        overall[answer] += 1
    if not overall:
        raise InputError("The question-only control has nothing to learn from: give at least one answered question.")
    return [by_question.get(question, overall).most_common(1)[0][0] for question in questions]


def derangement(n: int, seed: int) -> list[int]:
    """A random order of 0 to n - 1 in which nothing stays in its place.

    Sattolo's algorithm: one cycle through all of them, so that a second look is never needed.

    Raises:
        InputError: fewer than two things cannot change places.
    """
    if n < 2:
        raise InputError(f"{n} image cannot be shuffled: the shuffled control needs at least 2.")
    order, draw = list(range(n)), random.Random(seed)
    for last in range(n - 1, 0, -1):
        other = draw.randrange(last)
        order[last], order[other] = order[other], order[last]
    return order
