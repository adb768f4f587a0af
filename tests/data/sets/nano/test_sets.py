"""Pictures drawn by their number: the same for everyone, true to what is said of them, and never what is held out."""

from __future__ import annotations

import gzip
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from vlora.data.formats import open_source
from vlora.data.sets.nano import digits, scenes
from vlora.data.sets.nano.base import LEAST, SIZE, Picture, held_out, open_set
from vlora.data.sets.nano.scenes import COLOURS, MORE_SHAPES, SHAPES
from vlora.errors import InputError, MissingDependency

T = TypeVar("T")

SHAPED = ("scenes", "pairs", "sizes", "crowds", "counts")
"""Sets of coloured shapes."""
HELD_OUT = [f"{colour} {shape}" for colour, shape in held_out("scenes")]


def pictures(split: str, count: int, name: str = "scenes") -> list[Picture]:
    drawn = open_set(name, split)  # type: ignore[arg-type]
    return [drawn.picture(number) for number in range(count)]


def test_a_picture_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from vlora.data.sets.nano.base import open_set\n"
        "made = [open_set('scenes', 'train').picture(number) for number in range(20)]\n"
        "print(hashlib.sha256(b''.join(one.image.tobytes() + repr(one.turns).encode() for one in made)).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_splits_differ() -> None:
    assert pictures("train", 1)[0].image.tobytes() != pictures("test", 1)[0].image.tobytes()


@pytest.mark.parametrize("name", SHAPED)
def test_training_never_shows_or_names_what_is_held_out(name: str) -> None:
    for picture in pictures("train", 1500, name):
        said = " ".join(f"{turn.question} {turn.answer}" for turn in picture.turns)
        assert not any(pair in said for pair in HELD_OUT)


def test_training_has_shapes_of_its_own() -> None:
    def said(split: str) -> set[str]:
        turns = [turn for picture in pictures(split, 400) for turn in picture.turns]
        return {word for turn in turns for word in re.findall(r"\w+", f"{turn.question} {turn.answer}")}

    assert said("train") >= {*SHAPES, *MORE_SHAPES}
    assert said("test") >= {*SHAPES}
    assert not said("test") & {*MORE_SHAPES}


def test_training_is_asked_what_a_relation_follows_from() -> None:
    more = {"scenes/side", "scenes/places", "scenes/extent"}
    assert {turn.task for picture in pictures("train", 100) for turn in picture.turns} >= more
    assert not {turn.task for picture in pictures("test", 400) for turn in picture.turns} & more


def test_training_asks_more_often_for_colours_and_shapes_than_the_test() -> None:
    def share(split: str) -> float:
        tasks = [turn.task for picture in pictures(split, 200) for turn in picture.turns]
        return sum(task in ("scenes/colour", "scenes/shape") for task in tasks) / len(tasks)

    assert share("train") > 0.33 > 0.25 > share("test")


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> list[scenes.Thing]:
    """What is painted."""
    return watched(monkeypatch, lambda thing: thing)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is painted, in words."""
    return watched(monkeypatch, lambda thing: thing.words)


def watched(monkeypatch: pytest.MonkeyPatch, note: Callable[[scenes.Thing], T]) -> list[T]:
    """A list that grows by every thing that is painted."""
    seen: list[T] = []
    paint = scenes._paint

    def noted(picture: Image.Image, thing: scenes.Thing, dice: random.Random) -> None:
        seen.append(note(thing))
        paint(picture, thing, dice)

    monkeypatch.setattr(scenes, "_paint", noted)
    return seen


@pytest.mark.parametrize("name", SHAPED)
def test_every_test_scene_shows_something_held_out(name: str, shown: list[str]) -> None:
    for number in range(300):
        shown.clear()
        open_set(name, "test").picture(number)
        assert set(shown) & set(HELD_OUT)


@pytest.mark.parametrize("split", ["train", "test"])
def test_pairs_are_two_things_asked_chiefly_for_how_they_stand(split: str, shown: list[str]) -> None:
    asked = Counter[str]()
    drawn = open_set("pairs", split)  # type: ignore[arg-type]
    for number in range(300):
        shown.clear()
        picture = drawn.picture(number)
        assert len(shown) == len({*shown}) == 2
        assert LEAST <= len(picture.turns) == len({*picture.turns})
        asked.update(turn.task for turn in picture.turns)
    assert asked["scenes/relation"] + asked["scenes/side"] > 0.6 * asked.total()
    assert {"scenes/colour", "scenes/shape", "scenes/place", "scenes/size"} <= {*asked}


@pytest.mark.parametrize("split", ["train", "test"])
def test_sizes_are_those_of_two_things_of_which_one_is_clearly_larger(split: str, painted: list[scenes.Thing]) -> None:
    asked = Counter[str]()
    drawn = open_set("sizes", split)  # type: ignore[arg-type]
    for number in range(300):
        painted.clear()
        picture = drawn.picture(number)
        assert LEAST <= len(picture.turns) == len({*picture.turns})
        small, large = sorted(painted, key=lambda thing: thing.half)
        assert large.half >= 1.3 * small.half
        for turn in picture.turns:
            asked[turn.task] += 1
            if turn.task == "scenes/size":
                assert turn.answer == (large if "larger" in turn.question else small).words
    assert asked["scenes/size"] + asked["scenes/extent"] > 0.5 * asked.total()


def test_the_larger_covers_more_of_the_pixels() -> None:
    asked = 0
    for picture in pictures("train", 200, "sizes"):
        pixels = np.asarray(picture.image).astype(int)
        for turn in picture.turns:
            found = re.fullmatch(r"which is (larger|smaller), the (\w+) (\w+) or the (\w+) (\w+)\?", turn.question)
            if found and found.group(3) == found.group(5) and found.group(2) != found.group(4):
                one, other = (int(of_colour(pixels, found.group(group)).sum()) for group in (2, 4))
                larger = found.group(2 if (one > other) == (found.group(1) == "larger") else 4)
                asked += 1
                assert turn.answer == f"{larger} {found.group(3)}", turn
    assert asked > 20


@pytest.mark.parametrize("split", ["train", "test"])
def test_counts_are_those_of_what_was_painted(split: str, shown: list[str]) -> None:
    asked, answers = Counter[str](), Counter[str]()
    drawn = open_set("counts", split)  # type: ignore[arg-type]
    for number in range(300):
        shown.clear()
        picture = drawn.picture(number)
        assert LEAST <= len(picture.turns) == len({*picture.turns})
        for turn in picture.turns:
            asked[turn.task] += 1
            wanted = re.search(r"(?:how many|count the) (\w+)(?: (\w+))?(?: are| do|\.)", turn.question)
            if wanted:
                words = {word.removesuffix("es" if word.endswith("sses") else "s") for word in wanted.groups() if word}
                found = sum({*thing.split()} >= words - {"shape"} for thing in shown)
                assert turn.answer == str(found), (turn, shown)
                answers[turn.answer] += 1
    assert asked["scenes/count"] > 0.6 * asked.total()
    assert {*answers} == {*"0123456"}
    assert max(answers.values()) < 0.3 * answers.total()


@pytest.mark.parametrize("split", ["train", "test"])
def test_crowds_are_unlike_things_asked_chiefly_for_what_goes_with_what(split: str, shown: list[str]) -> None:
    asked = Counter[str]()
    sizes = Counter[int]()
    drawn = open_set("crowds", split)  # type: ignore[arg-type]
    for number in range(300):
        shown.clear()
        picture = drawn.picture(number)
        sizes[len({*shown})] += 1
        assert len(shown) == len({*shown})
        assert LEAST <= len(picture.turns) == len({*picture.turns})
        for turn in picture.turns:
            asked[turn.task] += 1
            assert_goes_with(turn.question, turn.answer, shown)
    assert {*sizes} == {3, 4, 5}
    assert sum(asked[f"scenes/{task}"] for task in ("colour", "shape", "colours", "shapes")) > 0.4 * asked.total()
    assert {"scenes/yes-no", "scenes/count", "scenes/relation", "scenes/place", "scenes/caption"} <= {*asked}


def assert_goes_with(question: str, answer: str, shown: list[str]) -> None:
    """What is said of two colours or shapes at once, or of a thing that may be there, is true of what was painted."""
    two = re.fullmatch(r"what (colors|shapes) are (?:the )?(\w+) and (?:the )?(\w+)\?", question)
    thing = re.fullmatch(r"(?:is there|do you see|does the picture show) an? (\w+ \w+)\?", question)
    if thing:
        assert answer == ("yes" if thing.group(1) in shown else "no")
    elif two:
        found = zip(two.groups()[1:], answer.split(" and "), strict=True)
        said = [f"{second} {first}" if two.group(1) == "colors" else f"{first} {second}" for first, second in found]
        assert len(said) == len({*said} & {*shown})


def test_what_a_crowd_does_not_show_is_mostly_put_together_of_what_it_does(shown: list[str]) -> None:
    together = Counter[bool]()
    for number in range(300):
        shown.clear()
        picture = open_set("crowds", "train").picture(number)
        colours, shapes = ({thing.split()[part] for thing in shown} for part in (0, 1))
        for turn in picture.turns:
            if turn.task == "scenes/yes-no" and turn.answer == "no":
                colour, shape = turn.question.rstrip("?").split()[-2:]
                together[colour in colours and shape in shapes] += 1
    assert together[True] > 0.5 * together.total()


def blobs(picture: Picture) -> tuple[int, list[str]]:
    """What is on a pale ground, read from the pixels alone: how many pieces, and the colour of each."""
    pixels = np.asarray(picture.image).astype(int)
    labels, count = ndimage.label(inked(pixels), structure=np.ones((3, 3)))
    colours: list[str] = []
    for piece in range(1, count + 1):
        mean = np.median(pixels[labels == piece], axis=0)
        colours.append(min(COLOURS, key=lambda name: float(np.abs(np.array(COLOURS[name]) - mean).sum())))
    return count, colours


def test_counts_and_colours_are_those_of_the_pixels() -> None:
    asked = 0
    for picture in pictures("train", 400) + pictures("test", 200):
        count, colours = blobs(picture)
        for turn in picture.turns:
            if turn.task != "scenes/count":
                continue
            wanted = re.search(r"(?:how many|count the) (?:(\w+) )?shapes", turn.question)
            if wanted:
                asked += 1
                colour = wanted.group(1)
                assert turn.answer == str(colours.count(colour) if colour else count), turn
    assert asked > 300


SIDES = {
    "left": lambda one, other: one[0] < other[0],
    "right": lambda one, other: one[0] > other[0],
    "above": lambda one, other: one[1] < other[1],
    "below": lambda one, other: one[1] > other[1],
}


@pytest.mark.parametrize("name", ["scenes", "pairs"])
def test_a_relation_is_that_of_the_pixels(name: str) -> None:
    asked = Counter[str]()
    for picture in pictures("train", 600, name):
        for turn in picture.turns:
            claim = re.fullmatch(r"is the (\w+) \w+ (left|right|above|below)(?: of)? the (\w+) \w+\?", turn.question)
            found = re.fullmatch(r"where is the (\w+) \w+ from the (\w+) \w+\?", turn.question)
            if claim and (both := middles(picture, claim.group(1), claim.group(3))):
                assert turn.answer == ("yes" if SIDES[claim.group(2)](*both) else "no"), turn
            elif found and (both := middles(picture, *found.groups())):
                assert SIDES[turn.answer](*both), turn
            else:
                continue
            asked[turn.task] += 1
    assert asked["scenes/relation"] > 50
    assert asked["scenes/side"] > 50


def test_places_are_those_of_the_pixels() -> None:
    """Not of moons: most of one is beside its middle."""
    asked = 0
    for picture in pictures("train", 600):
        for turn in picture.turns:
            found = re.fullmatch(r"where are the (\w+) (?!moon)\w+ and the (\w+) (?!moon)\w+\?", turn.question)
            if found and (both := middles(picture, *found.groups())):
                asked += 1
                assert turn.answer == " and ".join(cell(*one) for one in both), turn
    assert asked > 50


def test_the_small_cover_less_than_the_large() -> None:
    covered: dict[str, list[int]] = {"small": [], "large": []}
    for picture in pictures("train", 600):
        pixels = np.asarray(picture.image).astype(int)
        for turn in picture.turns:
            found = re.fullmatch(r"how large is the (\w+) (circle|square)\?", turn.question)
            if found and blobs(picture)[1].count(found.group(1)) == 1:
                covered[turn.answer].append(int(of_colour(pixels, found.group(1)).sum()))
    assert min(map(len, covered.values())) > 5
    assert max(covered["small"]) < min(covered["large"])


def cell(x: float, y: float) -> str:
    row, column = ("top", "middle", "bottom")[int(3 * y / SIZE)], ("left", "middle", "right")[int(3 * x / SIZE)]
    return row if row == column else f"{row} {column}"


def middles(picture: Picture, *colours: str) -> list[tuple[float, float]]:
    """Where two pieces are, if each is the only one of its colour."""
    _, seen = blobs(picture)
    if any(seen.count(colour) != 1 for colour in colours) or len({*colours}) < len(colours):
        return []
    return [middle(np.asarray(picture.image).astype(int), colour) for colour in colours]


def middle(pixels: np.ndarray, colour: str) -> tuple[float, float]:
    rows, columns = np.nonzero(of_colour(pixels, colour))
    return float(np.median(columns)), float(np.median(rows))


def inked(pixels: np.ndarray) -> np.ndarray:
    return pixels.min(axis=2) < 180


def of_colour(pixels: np.ndarray, colour: str) -> np.ndarray:
    ink = inked(pixels)
    distances = np.abs(pixels[ink][:, None] - np.array([*COLOURS.values()])).sum(axis=2)
    found = np.zeros_like(ink)
    found[ink] = distances.argmin(axis=1) == [*COLOURS].index(colour)
    return found


def test_no_answer_can_be_guessed_from_its_kind_alone() -> None:
    answers: dict[str, Counter[str]] = {}
    for picture in pictures("train", 1500):
        assert len(picture.turns) >= LEAST
        for turn in picture.turns:
            answers.setdefault(turn.task, Counter())[turn.answer] += 1
    assert 0.4 < answers["scenes/yes-no"]["yes"] / answers["scenes/yes-no"].total() < 0.6
    assert {str(count) for count in range(7)} <= set(answers["scenes/count"])
    for task, most in (("scenes/count", 0.4), ("scenes/colour", 0.25), ("scenes/shape", 0.3), ("scenes/place", 0.25)):
        assert answers[task].most_common(1)[0][1] / answers[task].total() < most


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Made-up digits in the order of the real ones: 500 of each."""
    rows = np.zeros((5000, 785), dtype=np.uint8)
    rows[:, -1] = np.arange(5000) // 500
    rows[:, :-1] = 20 * (1 + rows[:, -1:])
    place = tmp_path / "digits"
    place.mkdir()
    before = digits._AFTER
    later = np.arange(50, dtype=np.uint8) % 10
    ink = np.repeat(20 * (1 + later), 28 * 28)
    (place / "train-images-idx3-ubyte").write_bytes(bytes(16 + before * 28 * 28) + ink.tobytes())
    (place / "train-labels-idx1-ubyte").write_bytes(bytes(8 + before) + later.tobytes())
    with gzip.open(place / "mnist_5k.csv.gz", "wt") as file:
        np.savetxt(file, rows, fmt="%d", delimiter=",")
    monkeypatch.setattr(digits, "folder", lambda: tmp_path)
    digits._table.cache_clear()
    yield
    digits._table.cache_clear()


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("split", ["train", "test"])
def test_digits(split: str) -> None:
    for number in range(60):
        picture = open_set("digits", split).picture(number)  # type: ignore[arg-type]
        assert len(picture.turns) >= LEAST
        answers = {turn.task: turn.answer for turn in picture.turns}
        assert picture.image.size == (SIZE, SIZE)
        if number % 2 == 0:
            value = int(answers["digits/read"])
            assert answers["digits/parity"] == ("odd" if value % 2 else "even")
        else:
            left, right = int(answers["digits/left"]), int(answers["digits/right"])
            assert answers["digits/sum"] == str(left + right)
            assert answers["digits/same"] == ("yes" if left == right else "no")
            assert answers.get("digits/larger", str(left)) == str(max(left, right))


@pytest.mark.usefixtures("written")
def test_training_has_the_digits_that_come_after_the_table_too() -> None:
    train, test = digits.Digits("train"), digits.Digits("test")
    assert len(train.usable) == len({*train.usable}) == 4000 + 50
    assert len(test.usable) == 1000
    assert max(test.usable) < 5000
    assert not {*train.usable} & {*test.usable}
    for one in train.usable:
        assert train.ink[one].max() == 20 * (1 + train.labels[one])


def test_a_digit_is_of_one_split_only() -> None:
    kept = held_out("digits")
    assert len(kept) == len(set(kept)) == 1000
    assert Counter(one // 500 for one in kept) == dict.fromkeys(range(10), 100)


def test_as_a_source() -> None:
    source = open_source("nano", "scenes")
    assert source.name == "scenes"
    first = source[3]
    assert first == source[3]
    assert len(first.conversations) >= 4
    assert first.images[0] != source[4].images[0]


def test_what_there_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = "scenes, pairs, sizes, crowds, counts, digits, emoji, stamps, nouns, clipart, texts"
    with pytest.raises(InputError, match=f"no part 'cats': choose from {choices}"):
        open_source("nano", "cats")
    with pytest.raises(InputError, match="no split 'validation'"):
        open_source("nano", "scenes", split="validation")
    with pytest.raises(InputError, match="needs a path"):
        open_source("nano")
    monkeypatch.setenv("VLORA_CACHE", str(tmp_path))
    digits._table.cache_clear()
    with pytest.raises(MissingDependency, match="vlora data fetch nano"):
        open_set("digits", "train").picture(0)
