"""The nano suite: what the nano model names, counts, compares and reads in pictures that training has not shown.

    test pictures ─ turns by task ─► items ─► answers: of the model, and of the same model kept from seeing
                                       └────► the most frequent answers of training, without a model

An item is right if its answer is the right one word for word. Of `texts`, whose questions no picture answers, the
right answer is what the bare language model says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from ..data.sets import easy_vqa
from ..errors import InputError
from .controls import derangement, most_frequent
from .easy_vqa import sample
from .predict import Asked, Drawn, Shown, pictures
from .scoring import Score, is_correct, score

TASK = "nano-suite"

ITEMS = 300
"""Of each task but easy-VQA, of which all are asked."""

TARGETS: dict[str, float | None] = {
    "easy-vqa": 0.985,
    "scenes/colour": 0.97,
    "scenes/shape": 0.97,
    "scenes/yes-no": 0.97,
    "scenes/count": 0.93,
    "scenes/relation": 0.95,
    "scenes/place": None,
    "scenes/size": None,
    "scenes/caption": None,
    "digits/read": 0.97,
    "digits/larger": 0.93,
    "digits/yes-no": None,
    "digits/parity": None,
    "digits/left": None,
    "digits/right": None,
    "digits/same": None,
    "digits/side": None,
    "digits/sum": None,
    "emoji/name": 0.80,
    "emoji/group": None,
    "emoji/yes-no": None,
    "emoji/other-artist-name": 0.45,
    "emoji/other-artist-group": 0.80,
    "emoji/other-artist-yes-no": None,
    "emoji/held-out-group": None,
    "emoji/held-out-yes-no": None,
    "stamps/noun": 0.90,
    "stamps/yes-no": None,
    "stamps/caption": None,
    "stamps/held-out-noun": 0.50,
    "stamps/held-out-yes-no": None,
    "clipart/topic": 0.70,
    "clipart/either": None,
    "clipart/yes-no": None,
    "texts": None,
}
"""Every task, and the accuracy that the shipped model is to have."""

CONTROLS = ("shuffled", "no-image", "question-only")
"""See `controls.py`; the third needs no model."""

_PREFIXES = ("other-artist-", "held-out-")
_LOOKED_THROUGH = 20_000
_LEARNT = 3_000


class Item(NamedTuple):
    """One question about one image, with its right answer."""

    image: Shown
    question: str
    answer: str


Answerer: TypeAlias = Callable[[Sequence[Asked], int, Callable[[int], None]], list[str]]
"""Answers of a model: told the questions, the tokens of the longest answer, and whom to tell how many are done."""


@dataclass(frozen=True)
class Row:
    """One item, and what became of it."""

    task: str
    item: Item
    prediction: str

    @property
    def correct(self) -> bool:
        """Whether the prediction is the right answer."""
        return is_correct(self.prediction, self.item.answer)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        image = self.item.image
        place = f"{image.part}/{image.split}/{image.number}" if isinstance(image, Drawn) else image.name
        facts = {"task": self.task, "image": place, "question": self.item.question, "answer": self.item.answer}
        return {**facts, "prediction": self.prediction, "correct": self.correct}


@dataclass(frozen=True)
class Result:
    """The accuracies of a model.

    Args:
        model: its name.
        seconds: of looking and answering, controls included.
        tasks: of each task: the model's score under `none`, those of the controls under their names.
        rows: what the model itself answered.
    """

    model: str
    seconds: float
    tasks: dict[str, dict[str, Score]]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the rows."""
        return {
            "task": TASK,
            "model": self.model,
            "seconds": round(self.seconds, 1),
            "tasks": {task: _facts(task, scores) for task, scores in self.tasks.items()},
        }


def _facts(task: str, scores: Mapping[str, Score]) -> dict[str, Any]:
    facts: dict[str, Any] = {**scores["none"].to_dict(), "target": TARGETS[task]}
    controls = {name: part.to_dict() for name, part in scores.items() if name != "none"}
    return facts | ({"controls": controls} if controls else {})


def evaluate(
    answers: Answerer,
    *,
    model: str,
    tokens: Callable[[str], int],
    tasks: Sequence[str] = tuple(TARGETS),
    limit: int | None = None,
    controls: Sequence[str] = CONTROLS,
    seed: int = 0,
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Ask everything, with and without the right image.

    Args:
        answers: the model.
        model: its name.
        tokens: of an answer.
        tasks: of `TARGETS`.
        limit: items of each task; None for `ITEMS`, and all of easy-VQA.
        controls: of `CONTROLS`.
        seed: of the shuffled images, and of a sample of easy-VQA.
        first: number of the first picture, see `items`.
        progress: told how many questions are answered, and of how many.

    Raises:
        InputError: no such task or control.
        MissingDependency: the pictures are not there.
    """
    _check(tasks, TARGETS, "task")
    _check(controls, CONTROLS, "control")
    asked = items(tasks, limit, seed=seed, first=first)
    runs = [name for name in ("none", *controls) if name != "question-only"]
    total, done = len(runs) * sum(map(len, asked.values())), 0
    scores: dict[str, dict[str, Score]] = {}
    rows: list[Row] = []
    started = time.perf_counter()

    def tell(more: int) -> None:
        if progress:
            progress(done + more, total)

    for task, own in asked.items():
        scores[task] = {}
        longest = max(tokens(answer) for answer in {item.answer for item in own}) + 1
        for control in runs:
            tell(0)
            predictions = answers(_shown(own, control, seed), longest, tell)
            scores[task][control] = _score(predictions, own)
            done += len(own)
            if control == "none":
                rows += [Row(task, item, text) for item, text in zip(own, predictions, strict=True)]
        if "question-only" in controls:
            scores[task]["question-only"] = _score(most_frequent(_learnt(task), [one.question for one in own]), own)
    return Result(model, time.perf_counter() - started, scores, tuple(rows))


def items(tasks: Sequence[str], limit: int | None, *, seed: int = 0, first: int = 0) -> dict[str, list[Item]]:
    """Items of each task, pictures in the order of their numbers.

    Args:
        tasks: of `TARGETS`.
        limit: items of each task; None for `ITEMS`, and all of easy-VQA.
        seed: of a sample of easy-VQA.
        first: number of the first picture. What is chosen by an accuracy must be measured on other pictures: choose
            from 50 000 on, and measure from 0 on. easy-VQA's pictures have no such numbers.

    Raises:
        MissingDependency: the pictures are not there.
    """
    wanted = ITEMS if limit is None else limit
    found: dict[str, list[Item]] = {task: [] for task in tasks}
    if "easy-vqa" in found:
        data = easy_vqa.load("test")
        found["easy-vqa"] = [
            Item(data.image_path(one.image_id), one.question, one.answer) for one in sample(data.questions, limit, seed)
        ]
    for part in dict.fromkeys(task.split("/")[0] for task in tasks if task != "easy-vqa"):
        missing = {task for task in tasks if task.split("/")[0] == part}
        for number in range(first, first + _LOOKED_THROUGH):
            for turn in pictures(part, "test").picture(number).turns:
                if turn.task in missing:
                    found[turn.task].append(Item(Drawn(part, "test", number), turn.question, turn.answer))
                    if len(found[turn.task]) == wanted:
                        missing.discard(turn.task)
            if not missing:
                break
    return found


def _shown(own: Sequence[Item], control: str, seed: int) -> list[Asked]:
    """What is asked: about the right image, another one of the task, or none."""
    if control == "no-image":
        return [Asked(None, item.question) for item in own]
    images = list(dict.fromkeys(item.image for item in own))
    if control == "shuffled":
        order = derangement(len(images), seed)
        others = {image: images[order[place]] for place, image in enumerate(images)}
        return [Asked(others[item.image], item.question) for item in own]
    return [Asked(item.image, item.question) for item in own]


def _learnt(task: str) -> Iterator[tuple[str, str]]:
    """Questions and answers of training, of the kind of a task."""
    if task == "easy-vqa":
        yield from ((one.question, one.answer) for one in easy_vqa.load("train").questions)
        return
    part, _, kind = task.partition("/")
    for prefix in _PREFIXES:
        kind = kind.removeprefix(prefix)
    same = f"{part}/{kind}" if kind else part
    for number in range(_LEARNT):
        turns = pictures(part, "train").picture(number).turns
        yield from ((one.question, one.answer) for one in turns if one.task == same)


def _score(predictions: Sequence[str], own: Sequence[Item]) -> Score:
    return score([is_correct(text, item.answer) for text, item in zip(predictions, own, strict=True)])


def _check(given: Sequence[str], known: Mapping[str, Any] | Sequence[str], what: str) -> None:
    wrong = [name for name in given if name not in known]
    if wrong or (not given and what == "task"):
        raise InputError(f"There is no {what} {', '.join(wrong) or '(none given)'}: choose from {', '.join(known)}.")
