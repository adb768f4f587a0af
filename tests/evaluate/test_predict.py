"""Answers in batches are the answers one by one, and no image is looked at twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlora.api import Eyes
from vlora.errors import InputError
from vlora.evaluate.predict import Asked, predict


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(5)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def asked(images: list[Path]) -> list[Asked]:
    """Several lengths, questions twice, and rows without an image."""
    questions = ("what?", "which?", "a longer one?", "colour")
    rows = [Asked(image, question) for question in questions for image in [*images, None]]
    return [*rows[::2], *rows[1::2], *rows[:3]]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_equals_one_by_one(eyes: Eyes, asked: list[Asked], batch_size: int) -> None:
    expected = [eyes.ask(None if a.image is None else str(a.image), a.question, max_new_tokens=3) for a in asked]
    assert predict(eyes, asked, batch_size=batch_size, max_new_tokens=3) == expected
    assert len({e for e, a in zip(expected, asked, strict=True) if a.question == "what?"}) > 1  # it looks


def test_looks_once(eyes: Eyes, asked: list[Asked], images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    perceive = Eyes.perceive

    def counting(self: Eyes, image: Any) -> Any:
        looked.extend(image)
        return perceive(self, image)

    monkeypatch.setattr(Eyes, "perceive", counting)
    predict(eyes, asked, batch_size=4, max_new_tokens=1)
    assert sorted(looked) == images


def test_batches_need_no_padding(eyes: Eyes, asked: list[Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    tokens = Eyes.tokens

    def watched(self: Eyes, questions: list[str], *images: Any) -> Any:
        inputs = tokens(self, questions, *images)
        assert inputs["attention_mask"].all()
        sizes.append(len(questions))
        return inputs

    monkeypatch.setattr(Eyes, "tokens", watched)
    predict(eyes, asked, batch_size=4, max_new_tokens=1)
    assert max(sizes) == 4


def test_progress(eyes: Eyes, asked: list[Asked]) -> None:
    told: list[tuple[int, int]] = []
    predict(eyes, asked, batch_size=8, max_new_tokens=1, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, len(asked))
    assert told[-1] == (len(asked), len(asked))
    assert told == sorted(told)


def test_nothing(eyes: Eyes) -> None:
    assert predict(eyes, []) == []


def test_bad_input(eyes: Eyes, images: list[Path]) -> None:
    with pytest.raises(InputError, match="batch of 0"):
        predict(eyes, [], batch_size=0)
    with pytest.raises(InputError, match="question is empty"):
        predict(eyes, [Asked(images[0], " ")])
    with pytest.raises(InputError, match="does not exist"):
        predict(eyes, [Asked(Path("no.png"), "what?")])
