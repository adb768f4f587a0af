"""easy-VQA: is the one word that a model answers the right one?"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..data.sets.easy_vqa import IMAGES, EasyVQA, Question, Split, kind, load
from ..errors import InputError
from .controls import CONTROLS, Control, derangement, most_frequent
from .scoring import Score, by_kind, is_correct, score

if TYPE_CHECKING:
    from ..api import Eyes

TASK = "easy-vqa"
MAX_NEW_TOKENS = 4
"""The longest of the thirteen answers, with room for the end-of-text token."""


@dataclass(frozen=True)
class Row:
    """One question, and what became of it."""

    image_id: int
    question: str
    answer: str
    prediction: str
    correct: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """Accuracy of a model, or of a control.

    Args:
        split: of easy-VQA.
        control: which one, `none` for the real thing.
        model: its name; None where no model was asked.
        seconds: of looking and answering.
        total: of all questions.
        kinds: of each kind of question.
        rows: every question, in the order of the set.
    """

    split: Split
    control: Control
    model: str | None
    seconds: float
    total: Score
    kinds: dict[str, Score]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the rows."""
        return {
            "task": TASK,
            "split": self.split,
            **self.total.to_dict(),
            "control": self.control,
            "model": self.model,
            "seconds": round(self.seconds, 3),
            "by_kind": {name: part.to_dict() for name, part in self.kinds.items()},
        }


def evaluate(
    eyes: Eyes | None,
    *,
    split: Split = "test",
    control: Control = "none",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Ask the questions of a split.

    Args:
        eyes: the model; only the control `question-only` needs none.
        split: `test`, or `train`.
        control: what the model is kept from seeing.
        limit: so many questions, drawn by the seed; None for all.
        seed: of the sample, and of the shuffled images.
        batch_size: questions at a time.
        progress: told how many questions are answered, and of how many.

    Raises:
        InputError: no such split or control, a limit below 1, or no model where one is needed.
        MissingDependency: the set is not installed.
    """
    if control not in CONTROLS:
        raise InputError(f"There is no control {control!r}: give one of {', '.join(CONTROLS)}.")
    data = load(split)
    questions = sample(data.questions, limit, seed)
    started = time.perf_counter()
    if control == "question-only":
        learnt = ((q.question, q.answer) for q in load("train").questions)
        predictions = most_frequent(learnt, [q.question for q in questions])
    elif eyes is None:
        raise InputError(f"The control {control!r} needs a model: give one, or take the control 'question-only'.")
    else:
        from .predict import Asked, predict  # imports torch, which the branch above does without

        asked = [
            Asked(None if image is None else data.image_path(image), q.question)
            for image, q in zip(shown_images(data, questions, control, seed), questions, strict=True)
        ]
        predictions = predict(eyes, asked, batch_size=batch_size, max_new_tokens=MAX_NEW_TOKENS, progress=progress)
    seconds = time.perf_counter() - started
    name = None if eyes is None or control == "question-only" else eyes.name
    return _result(split, control, name, seconds, questions, predictions)


def sample(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """Draw questions, and keep their order.

    Raises:
        InputError: a limit below 1.
    """
    if limit is None:
        return list(questions)
    if limit < 1:
        raise InputError(f"A sample of {limit} questions is not possible: give at least 1.")
    drawn = random.Random(seed).sample(range(len(questions)), min(limit, len(questions)))
    return [questions[number] for number in sorted(drawn)]


def shown_images(data: EasyVQA, questions: Sequence[Question], control: Control, seed: int) -> Iterator[int | None]:
    """The image that is shown with each question: its own, another one of the split, or none."""
    others = derangement(IMAGES[data.split], seed) if control == "shuffled" else None
    for question in questions:
        if control == "no-image":
            yield None
        else:
            yield question.image_id if others is None else others[question.image_id]


def _result(
    split: Split,
    control: Control,
    model: str | None,
    seconds: float,
    questions: Sequence[Question],
    predictions: Sequence[str],
) -> Result:
    rows = tuple(
        Row(q.image_id, q.question, q.answer, prediction, is_correct(prediction, q.answer))
        for q, prediction in zip(questions, predictions, strict=True)
    )
    outcomes = [row.correct for row in rows]
    kinds = by_kind([kind(q) for q in questions], outcomes)
    return Result(split, control, model, seconds, score(outcomes), kinds, rows)
