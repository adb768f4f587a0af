"""Golden values of scores and intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlora.errors import InputError
from vlora.evaluate.scoring import Score, by_kind, is_correct, normalise, score, wilson


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # By hand: all right, half right.
        (20, 20, 0.8389, 1.0000),
        (50, 100, 0.4038, 0.5962),
        (6481, 9673, 0.6606, 0.6793),
    ],
)
def test_wilson(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_rate_and_mirrors(counts: tuple[int, int]) -> None:
    correct, n = counts
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n + 1e-12
    assert correct / n - 1e-12 <= high <= 1
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_of_nonsense(correct: int, n: int) -> None:
    with pytest.raises(InputError, match=f"{correct} right in {n}"):
        wilson(correct, n)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [("Yes", "yes"), (" teal.\n", "teal"), ("teal .", "teal"), ("no..", "no."), ("", ""), (".", "")],
)
def test_normalise(given_: str, expected: str) -> None:
    assert normalise(given_) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [("Circle.", "circle", True), ("circle", "circles", False), ("a circle", "circle", False), ("", "no", False)],
)
def test_is_correct(prediction: str, answer: str, right: bool) -> None:
    assert is_correct(prediction, answer) is right


def test_score() -> None:
    assert score([True, False, True, True]) == Score(n=4, correct=3)
    assert score([True] * 3 + [False]).to_dict() == {
        "n": 4,
        "accuracy": 0.75,
        "interval": pytest.approx([0.3006, 0.9544], abs=5e-5),
    }
    with pytest.raises(InputError, match="nothing to score"):
        score([])


def test_by_kind() -> None:
    parts = by_kind(["b", "a", "b", "b"], [True, False, False, True])
    assert parts == {"a": Score(1, 0), "b": Score(3, 2)}
    assert list(parts) == ["a", "b"]
    with pytest.raises(ValueError, match="longer"):
        by_kind(["a"], [True, False])
