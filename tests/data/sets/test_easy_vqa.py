"""The easy-VQA package is what we say it is, and anything else is refused with the command that mends it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vlora.data.images import image_hash, open_image
from vlora.data.sets import easy_vqa
from vlora.data.sets.easy_vqa import EasyVQA, Question, Split, kind, load
from vlora.errors import CheckpointError, InputError, MissingDependency

COMMAND = "pip install --no-deps easy-vqa==1.0"

installed = pytest.mark.skipif(
    importlib.util.find_spec("easy_vqa") is None, reason=f"easy-VQA is not installed: `{COMMAND}`"
)


@pytest.fixture(scope="module")
def train() -> EasyVQA:
    return load("train")


@pytest.fixture(scope="module")
def held_out() -> EasyVQA:
    return load("test")


@installed
def test_counts(train: EasyVQA, held_out: EasyVQA) -> None:
    assert (len(train.questions), len(held_out.questions)) == (38575, 9673)
    assert {question.image_id for question in train.questions} == set(range(4000))
    assert {question.image_id for question in held_out.questions} == set(range(1000))
    assert train.image_path(3999).is_file()
    assert held_out.image_path(999).is_file()


@installed
def test_answers(train: EasyVQA, held_out: EasyVQA) -> None:
    shapes, colours = {"circle", "rectangle", "triangle"}, {"black", "blue", "brown", "gray", "green", "red"}
    assert train.answers == held_out.answers
    assert len(train.answers) == 13
    assert set(train.answers) == shapes | colours | {"teal", "yellow", "yes", "no"}
    for split in (train, held_out):
        assert {question.answer for question in split.questions} == set(split.answers)


@installed
def test_kinds_agree_with_answers(held_out: EasyVQA) -> None:
    by_kind = Counter(kind(question) for question in held_out.questions)
    assert by_kind == {"yes/no": 7136, "color": 1280, "shape": 1257}
    assert set(by_kind) == set(easy_vqa.KINDS)
    for question in held_out.questions:
        expected = {
            "yes": "yes/no",
            "no": "yes/no",
            "circle": "shape",
            "rectangle": "shape",
            "triangle": "shape",
        }
        assert kind(question) == kind(question.question) == expected.get(question.answer, "color")


@installed
def test_known_items(train: EasyVQA, held_out: EasyVQA) -> None:
    assert train.questions[0] == Question(0, "what is the blue shape?", "rectangle")
    assert held_out.questions[0] == Question(0, "what is the red shape?", "triangle")
    assert held_out.questions[8] == Question(0, "is no blue shape present?", "yes")


@installed
def test_images_show_what_the_answers_say(train: EasyVQA, held_out: EasyVQA) -> None:
    blue, red = open_image(train.image_path(0)), open_image(held_out.image_path(0))
    assert blue.size == red.size == (64, 64)
    # The shape covers what differs most from the pale background; its channels give its colour away.
    for image, channel in ((blue, 2), (red, 0)):
        pixels = np.asarray(image, np.int64).reshape(-1, 3)
        assert pixels[pixels.sum(1).argmin()].argmax() == channel


@installed
def test_no_image_of_train_is_in_test(train: EasyVQA, held_out: EasyVQA) -> None:
    seen = {image_hash(train.image_path(image_id)) for image_id in range(4000)}
    assert len(seen) == 4000
    assert not any(image_hash(held_out.image_path(image_id)) in seen for image_id in range(1000))


@installed
def test_questions_are_the_same_in_both(train: EasyVQA, held_out: EasyVQA) -> None:
    texts = {question.question for question in train.questions}
    assert len(texts) == 107
    assert texts == {question.question for question in held_out.questions}


@installed
def test_package_is_not_run() -> None:
    sys.modules.pop("easy_vqa", None)
    load("test")
    assert "easy_vqa" not in sys.modules


@installed
def test_no_such_image(held_out: EasyVQA) -> None:
    for image_id in (-1, 1000):
        with pytest.raises(InputError, match="0 to 999"):
            held_out.image_path(image_id)


def test_no_such_split() -> None:
    with pytest.raises(InputError, match="'train' or 'test'"):
        load("val")  # pyright: ignore[reportArgumentType]


def test_foreign_question_has_no_kind() -> None:
    with pytest.raises(InputError, match="not a question of easy-VQA"):
        kind("how many shapes are there?")


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(MissingDependency, match=COMMAND):
        load("train")


# -- damaged packages ---------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path, held_out: EasyVQA, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with all texts and the images of test, to be damaged."""
    root = tmp_path / "easy_vqa" / "data"
    shutil.copytree(held_out.root, root, ignore=lambda folder, _: ["images"] if str(folder).endswith("train") else [])
    (tmp_path / "easy_vqa" / "__init__.py").write_text("raise RuntimeError('was run')")
    monkeypatch.syspath_prepend(tmp_path)
    return root


def refuse(split: Split, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load(split)
    assert COMMAND in str(caught.value)


@installed
def test_copy_is_found_first(copied: Path) -> None:
    assert load("test").root == copied


@installed
@pytest.mark.parametrize("name", ["train/questions.json", "test/questions.json", "answers.txt"])
def test_changed_texts(copied: Path, name: str) -> None:
    text = (copied / name).read_text()
    (copied / name).write_text(text.replace("red", "rad"))
    refuse("test", "other question or answer files")


@installed
def test_missing_texts(copied: Path) -> None:
    (copied / "answers.txt").unlink()
    refuse("test", "no readable question or answer files")


@installed
def test_missing_and_foreign_images(copied: Path) -> None:
    images = copied / "test" / "images"
    (images / "7.png").rename(images / "1007.png")
    refuse("test", "999 of 1000 images in test, 1 foreign")
    refuse("train", "0 of 4000 images in train")
