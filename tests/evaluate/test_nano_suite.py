"""The nano suite: what is asked, of whom, and what it counts. Scenes only, which need nothing that is fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.compare.tiny import tiny_baseline
from vlora.api import Eyes
from vlora.compare.answer import answer
from vlora.compare.baseline import save_baseline
from vlora.errors import CheckpointError, InputError
from vlora.evaluate.answerers import is_baseline, load_baseline, of_baseline, of_eyes
from vlora.evaluate.nano_suite import CONTROLS, TARGETS, Answerer, evaluate, items
from vlora.evaluate.predict import Asked, Drawn, opened

SCENES = ("scenes/colour", "scenes/yes-no", "scenes/count")


def knowing(told: list[str | None] | None = None) -> Answerer:
    """Who knows the answer to every question about a test scene, and says no where it is shown none."""

    def answers(asked: Sequence[Asked], tokens: int, tell: Callable[[int], None]) -> list[str]:
        tell(len(asked))
        found: list[str] = []
        for one in asked:
            assert isinstance(one.image, Drawn | None)
            if told is not None:
                told.append(None if one.image is None else f"{one.image.part} {one.image.split}")
            said = [turn.answer for turn in turns(one.image) if turn.question == one.question]
            found.append(f" {said[0].upper()}. " if said else "no")
        return found

    return answers


def turns(image: Drawn | None) -> tuple:  # type: ignore[type-arg]
    from vlora.data.sets.nano.base import open_set

    return () if image is None else open_set(image.part, image.split).picture(image.number).turns


def test_who_looks_is_right_and_who_is_kept_from_it_is_not() -> None:
    told: list[str | None] = []
    seen: list[tuple[int, int]] = []
    result = evaluate(
        knowing(told), model="x", tokens=len, tasks=SCENES, limit=40, progress=lambda *at: seen.append(at)
    )
    assert list(result.tasks) == list(SCENES)
    for scores in result.tasks.values():
        assert set(scores) == {"none", *CONTROLS}
        assert (scores["none"].n, scores["none"].accuracy) == (40, 1.0)
        assert all(scores[control].accuracy < 0.8 for control in CONTROLS)
    assert set(told) == {"scenes test", None}
    assert seen[-1] == (360, 360)
    assert [one[0] for one in seen] == sorted(one[0] for one in seen)
    assert len(result.rows) == 120
    assert all(row.correct for row in result.rows)


def test_as_json() -> None:
    facts = evaluate(knowing(), model="x", tokens=len, tasks=SCENES[:1], limit=10, controls=()).to_dict()
    interval = facts["tasks"]["scenes/colour"].pop("interval")
    assert facts.pop("seconds") >= 0
    assert facts == {
        "task": "nano-suite",
        "model": "x",
        "tasks": {"scenes/colour": {"n": 10, "accuracy": 1.0, "target": 0.97}},
    }
    assert 0.7 < interval[0] < interval[1] == 1.0


def test_what_is_said_is_kept() -> None:
    result = evaluate(knowing(), model="x", tokens=len, tasks=["scenes/colour"], limit=2, controls=())
    row = result.rows[0].to_dict()
    assert set(row) == {"task", "image", "question", "answer", "prediction", "correct"}
    assert row["image"].startswith("scenes/test/")
    assert row["prediction"].strip(" .").lower() == row["answer"]


def test_items_are_the_same_each_time_and_no_more_than_asked_for() -> None:
    first, again = (items(SCENES, 25) for _ in range(2))
    assert first == again
    assert {len(own) for own in first.values()} == {25}


@pytest.mark.parametrize(("tasks", "controls"), [(["scenes/smell"], ()), (SCENES, ("blind",)), ([], ())])
def test_what_there_is_not(tasks: Sequence[str], controls: Sequence[str]) -> None:
    with pytest.raises(InputError, match=r"There is no (task|control) .*: choose from"):
        evaluate(knowing(), model="x", tokens=len, tasks=tasks, controls=controls)


def test_every_task_with_a_target_is_that_of_a_set() -> None:
    assert {task.split("/")[0] for task in TARGETS} == {
        "easy-vqa", "scenes", "digits", "emoji", "stamps", "clipart", "texts",
    }  # fmt: skip


def test_eyes_answer_as_when_asked_one_by_one(eyes: Eyes) -> None:
    asked = [
        Asked(image, question)
        for question in ("what?", "a longer one?")
        for image in (Drawn("scenes", "test", 3), None)
    ]
    done: list[int] = []
    expected = [
        eyes.ask(None if one.image is None else opened(one.image), one.question, max_new_tokens=3) for one in asked
    ]
    assert of_eyes(eyes, batch_size=3)(asked, 3, done.append) == expected
    assert done[-1] == 4


def test_a_baseline_answers_as_when_asked_one_by_one(tmp_path: Path) -> None:
    model, processor = tiny_baseline("llama", "efficientnet")
    save_baseline(tmp_path, model=model, processor=processor, dtype=torch.float32)
    assert is_baseline(tmp_path)
    assert not is_baseline(tmp_path / "no")
    path = tmp_path / "grey.png"
    Image.new("RGB", (32, 32), (90,) * 3).save(path)
    asked = [
        Asked(image, question) for question in ("what?", "longer one?") for image in (path, Drawn("scenes", "test", 3))
    ]
    asked = [*asked, Asked(None, "what?"), asked[0]]
    loaded, its = load_baseline(tmp_path, "cpu")
    expected = [
        answer(model, processor, [None if one.image is None else opened(one.image)], [one.question], 3)[0]
        for one in asked
    ]
    done: list[int] = []
    assert of_baseline(loaded, its, batch_size=2)(asked, 3, done.append) == expected
    assert done[-1] == len(asked)


def test_a_damaged_baseline(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")
    assert is_baseline(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_baseline(tmp_path, "cpu")
