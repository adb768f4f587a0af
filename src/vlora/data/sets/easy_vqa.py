"""easy-VQA: one coloured shape an image, 13 answers; a first task with a public peer (MIT licence).

    package   easy-vqa 1.0 of PyPI, installed without its dependencies; its code is never run
    train     4 000 images of 64x64, 38 575 questions
    test      1 000 images of 64x64,  9 673 questions
    floor     always "yes" 37.3 %; the most frequent answer of each question 67.0 % (82.5 % of yes/no,
              34.8 % of shape, 12.0 % of color): a claim starts above that

Both splits ask the same 107 questions, so only the images are new in the test. They number their images from
0 each: an image id means something only together with its split.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

from vlora.errors import CheckpointError, InputError, MissingDependency

Split: TypeAlias = Literal["train", "test"]
Kind: TypeAlias = Literal["shape", "color", "yes/no"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""The kinds of questions, for accuracy by kind."""

IMAGES: dict[Split, int] = {"train": 4000, "test": 1000}
"""How many images a split has."""

QUESTIONS: dict[Split, int] = {"train": 38575, "test": 9673}
"""How many questions a split has."""

SHA256 = "3ec9613d400188653b33f198bd074041f6aa8641c54fa9dffb121e3d3bfae7f0"
"""Of the questions of train, of test, and the answers, one file after the other."""

_INSTALL = "pip install --no-deps easy-vqa==1.0"
_TEXTS = ("train/questions.json", "test/questions.json", "answers.txt")


@dataclass(frozen=True)
class Question:
    """One question about one image of a split, with its only right answer."""

    image_id: int
    question: str
    answer: str


@dataclass(frozen=True)
class EasyVQA:
    """One split of the set."""

    split: Split
    root: Path
    """The folder of the installed package that holds both splits."""
    questions: list[Question]
    answers: tuple[str, ...]
    """Every possible answer, in the order of the package."""

    def image_path(self, image_id: int) -> Path:
        """Return the file of an image of this split.

        Raises:
            InputError: the split has no such image.
        """
        count = IMAGES[self.split]
        if not 0 <= image_id < count:
            raise InputError(f"easy-VQA {self.split} has no image {image_id}: give 0 to {count - 1}.")
        return _image_folder(self.root, self.split) / f"{image_id}.png"


def load(split: Split) -> EasyVQA:
    """Load one split, after a check of the whole package.

    Raises:
        InputError: there is no such split.
        MissingDependency: the package is not installed.
        CheckpointError: the package is not easy-vqa 1.0, or its files are changed.
    """
    if split not in IMAGES:
        raise InputError(f"easy-VQA has no split {split!r}: give 'train' or 'test'.")
    root = _find()
    texts = _read_checked(root)
    _check_images(root, split)
    rows = cast("list[tuple[str, str, int]]", json.loads(texts[f"{split}/questions.json"]))
    questions = [Question(image_id, question, answer) for question, answer, image_id in rows]
    if len(questions) != QUESTIONS[split]:
        raise _mismatch(f"{len(questions)} questions in {split} instead of {QUESTIONS[split]}")
    return EasyVQA(split, root, questions, tuple(texts["answers.txt"].decode().split()))


def kind(question: Question | str) -> Kind:
    """Return what a question asks for, judged by its words alone.

    Raises:
        InputError: the text is not a question of the set.
    """
    text = question.question if isinstance(question, Question) else question
    if text.startswith(("what color ", "what is the color ")):
        return "color"
    if text.startswith("what "):
        return "shape"
    if text.startswith(("is ", "does ")):
        return "yes/no"
    raise InputError(f"{text!r} is not a question of easy-VQA: its questions begin with 'what', 'is' or 'does'.")


def _find() -> Path:
    """Find the package without importing it: it is data, and data need not run."""
    spec = importlib.util.find_spec("easy_vqa")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise MissingDependency(f"easy-VQA is not installed: install it with `{_INSTALL}`.")
    return Path(places[0]) / "data"


def _read_checked(root: Path) -> dict[str, bytes]:
    try:
        texts = {name: (root / name).read_bytes() for name in _TEXTS}
    except OSError:
        raise _mismatch("no readable question or answer files") from None
    if hashlib.sha256(b"".join(texts.values())).hexdigest() != SHA256:
        raise _mismatch("other question or answer files than version 1.0")
    return texts


def _check_images(root: Path, split: Split) -> None:
    folder = _image_folder(root, split)
    found = {path.name for path in folder.glob("*.png")}
    expected = {f"{image_id}.png" for image_id in range(IMAGES[split])}
    if found != expected:
        raise _mismatch(
            f"{len(found & expected)} of {len(expected)} images in {split}, {len(found - expected)} foreign"
        )


def _image_folder(root: Path, split: Split) -> Path:
    return root / split / "images"


def _mismatch(found: str) -> CheckpointError:
    return CheckpointError(f"the installed easy_vqa has {found}: reinstall it with `{_INSTALL} --force-reinstall`.")
