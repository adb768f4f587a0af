"""Controls: what they show, and that they are the same each time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlora.errors import InputError
from vlora.evaluate.controls import derangement, most_frequent


@given(st.integers(2, 300), st.integers(0, 5))
def test_derangement(n: int, seed: int) -> None:
    order = derangement(n, seed)
    assert sorted(order) == list(range(n))
    assert all(order[place] != place for place in range(n))
    assert order == derangement(n, seed)


def test_seeds_differ() -> None:
    assert derangement(100, 0) != derangement(100, 1)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_to_shuffle(n: int) -> None:
    with pytest.raises(InputError, match="at least 2"):
        derangement(n, 0)


def test_most_frequent() -> None:
    pairs = [("a?", "yes"), ("a?", "no"), ("a?", "no"), ("b?", "red"), ("b?", "blue"), ("c?", "no")]
    assert most_frequent(pairs, ["b?", "a?", "new?"]) == ["red", "no", "no"]
    with pytest.raises(InputError, match="nothing to learn from"):
        most_frequent([], ["a?"])
