"""The task: which images are shown, which questions are drawn, and what the controls score."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from vlora.api import Eyes
from vlora.data.sets.easy_vqa import Question, kind, load
from vlora.errors import InputError
from vlora.evaluate import predict
from vlora.evaluate.easy_vqa import evaluate, sample, shown_images

pytestmark = pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="easy-VQA is not installed")


def test_question_only() -> None:
    result = evaluate(None, control="question-only")
    assert result.total.n == 9673
    assert result.total.accuracy == pytest.approx(0.670, abs=0.001)
    assert {name: part.n for name, part in result.kinds.items()} == {"color": 1280, "shape": 1257, "yes/no": 7136}
    assert result.kinds["yes/no"].accuracy == pytest.approx(0.825, abs=0.001)
    assert result.model is None


def test_a_perfect_model(eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("test")
    answers = {(data.image_path(q.image_id), q.question): q.answer for q in data.questions}

    def perfect(_: Eyes, asked: Sequence[predict.Asked], **__: Any) -> list[str]:
        return [f" {answers[one.image, one.question].title()}." for one in asked]  # type: ignore[index]

    monkeypatch.setattr(predict, "predict", perfect)
    assert evaluate(eyes).total.accuracy == 1.0
    with pytest.raises(KeyError):
        evaluate(eyes, control="no-image", limit=3)


def test_a_model_that_looks_fails_on_shuffled_images(eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("test")
    shapes = {q.image_id: q.answer for q in data.questions if kind(q) == "shape"}

    def looks(_: Eyes, asked: Sequence[predict.Asked], **__: Any) -> list[str]:
        return [shapes.get(int(one.image.stem), "") for one in asked if one.image]

    monkeypatch.setattr(predict, "predict", looks)
    own = evaluate(eyes).kinds["shape"].accuracy
    other = evaluate(eyes, control="shuffled").kinds["shape"].accuracy
    assert own == 1.0
    assert 0.2 < other < 0.5


def test_rows_and_json(eyes: Eyes) -> None:
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    result = evaluate(eyes, limit=6, batch_size=4, progress=tell)
    assert told[-1] == (6, 6)
    assert [(row.image_id, row.question) for row in result.rows] == [
        (q.image_id, q.question) for q in sample(load("test").questions, 6, 0)
    ]
    facts = result.to_dict()
    assert (facts["task"], facts["split"], facts["control"], facts["model"]) == ("easy-vqa", "test", "none", "tiny")
    assert facts["seconds"] > 0
    assert facts["n"] == 6 == sum(part["n"] for part in facts["by_kind"].values())


def test_no_image_is_the_bare_model(eyes: Eyes) -> None:
    result = evaluate(eyes, control="no-image", limit=4)
    assert [row.prediction for row in result.rows] == [
        eyes.ask(None, row.question, max_new_tokens=4) for row in result.rows
    ]


def test_sample() -> None:
    questions = [Question(n, f"is it {n}?", "yes") for n in range(100)]
    drawn = sample(questions, 10, 0)
    assert len(drawn) == 10
    assert drawn == sorted(drawn, key=lambda q: q.image_id)
    assert drawn == sample(questions, 10, 0) != sample(questions, 10, 1)
    assert sample(questions, None, 0) == sample(questions, 1000, 5) == questions
    with pytest.raises(InputError, match="at least 1"):
        sample(questions, 0, 0)


def test_shown_images() -> None:
    data = load("test")
    own = list(shown_images(data, data.questions, "none", 0))
    shuffled = list(shown_images(data, data.questions, "shuffled", 0))
    assert own == [q.image_id for q in data.questions]
    assert all(a != b for a, b in zip(own, shuffled, strict=True))
    assert len(dict(zip(own, shuffled, strict=True))) == len(set(shuffled)) == 1000  # one other image for each
    assert set(shown_images(data, data.questions, "no-image", 0)) == {None}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: evaluate(None), "needs a model"),
        (lambda: evaluate(None, control="x"), "no control 'x'"),  # type: ignore[arg-type]
        (lambda: evaluate(None, split="val"), "no split 'val'"),  # type: ignore[arg-type]
        (lambda: evaluate(None, control="question-only", limit=0), "at least 1"),
    ],
)
def test_bad_input(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
