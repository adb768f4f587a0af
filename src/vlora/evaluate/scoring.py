"""Right or wrong, accuracy, and how far chance alone could move it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from ..errors import InputError

Z_95 = 1.959963984540054
"""Half the width of the middle 95 % of a normal distribution, in standard deviations."""


def normalise(answer: str) -> str:
    """An answer as it is compared: without surrounding space, in lower case, without a final period."""
    return answer.strip().lower().removesuffix(".").rstrip()


def is_correct(prediction: str, answer: str) -> bool:
    """Whether a prediction is the answer, word for word."""
    return normalise(prediction) == normalise(answer)


def wilson(correct: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; unlike the usual formula, right for few or one-sided outcomes too.

    Args:
        correct: how many were right.
        n: of how many.
        z: width in standard deviations; the default makes it a 95 % interval.

    Raises:
        InputError: no such counts.
    """
    if n < 1 or not 0 <= correct <= n:
        raise InputError(f"There is no accuracy of {correct} right in {n}: give 0 to n right, of at least 1.")
    rate = correct / n
    centre = rate + z * z / (2 * n)
    spread = z * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends are exact where rounding would put them just beside 0 or 1, and so beside the rate itself.
    low = (centre - spread) / scale if correct else 0.0
    high = (centre + spread) / scale if correct < n else 1.0
    return low, high


@dataclass(frozen=True)
class Score:
    """How many of how many were right."""

    n: int
    correct: int

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson(self.correct, self.n)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"n": self.n, "accuracy": self.accuracy, "interval": list(self.interval)}


def score(outcomes: Sequence[bool]) -> Score:
    """Count outcomes.

    Raises:
        InputError: there are none.
    """
    if not outcomes:
        raise InputError("There is nothing to score: give at least one question.")
    return Score(len(outcomes), sum(outcomes))


def by_kind(kinds: Sequence[str], outcomes: Sequence[bool]) -> dict[str, Score]:
    """Count outcomes of each kind, kinds in alphabetical order."""
    groups: dict[str, list[bool]] = {}
    for kind, outcome in zip(kinds, outcomes, strict=True):
        groups.setdefault(kind, []).append(outcome)
    return {kind: score(groups[kind]) for kind in sorted(groups)}
