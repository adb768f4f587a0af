"""Emoji, stamps and drawings, on a small folder of made-up pictures under the names of real ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlora.data.sets.nano import canvas, clipart, emoji, nouns, stamps, texts
from vlora.data.sets.nano.base import LEAST, SIZE, held_out, open_set

KEPT_EMOJI = held_out("emoji")[0]
KEPT_STAMP = held_out("stamps")[0]
INK = {
    "google": (250, 0, 0),
    "twitter": (0, 0, 250),
    "kept": (0, 250, 0),
    "blobs": (250, 0, 120),
    "emojione": (250, 0, 250),
    "emojione-1": (120, 0, 250),
    "fluent": (0, 250, 250),
    "fluent-flat": (0, 120, 250),
    "openmoji": (250, 120, 250),
    "stamp": (250, 250, 0),
}
SHOWN = {
    "emoji": ("google", *emoji.OTHERS),
    "stamps": ("stamp",),
    "nouns": ("google", *emoji.OTHERS),
    "clipart": ("google", "stamp", *emoji.OTHERS),
}
"""Inks of what training may show, by set."""
CACHES = (canvas._photographs, canvas.cut_out, clipart.drawings, emoji.emojis, stamps.stamps)


def save(path: Path, colour: tuple[int, int, int]) -> None:
    """A disc of one colour with nothing around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(*[np.linspace(-1, 1, 64)] * 2)
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[x * x + y * y < 0.8] = (*colour, 255)
    Image.fromarray(pixels).save(path)


@pytest.fixture(autouse=True)
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three emoji, five stamps with two bears, two drawings of each topic; one of each held out; grey photographs.

    Of the topics of drawings one emoji is of buildings, and a stamp of food.
    """
    known = {"unified": "2600-FE0F", "image": "a.png", "category": "Travel & Places", "subcategory": "place-building"}
    other = {"unified": "1F319", "image": "a.png", "category": "Travel & Places"}
    kept = {"unified": KEPT_EMOJI, "image": "b.png", "category": "Flags", "subcategory": "place-building"}
    family = {"unified": "1F468-200D-1F469", "image": "a.png", "category": "People & Body"}
    beside = {"subcategory": "time", "has_img_google": True, "has_img_twitter": True}
    rows = [beside | row for row in (known, other, kept, family)]
    names = {"2600": "sun", "1F319": "Moon", KEPT_EMOJI: "flag: Nowhere", "1F468-200D-1F469": "family"}
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "emoji.json").write_text(json.dumps(rows), encoding="utf-8")
    tags = {"2600": ["bright", "weather", "sun", "143"], "1F319": ["night", "weather"], KEPT_EMOJI: ["NW"]}
    labels = [{"hexcode": code, "label": name, "tags": tags.get(code, [])} for code, name in names.items()]
    (tmp_path / "emoji" / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    for artist in emoji.ARTISTS:
        save(tmp_path / "emoji" / artist / "a.png", INK[artist])
        save(tmp_path / "emoji" / artist / "b.png", INK["kept"])
    for artist in emoji.OTHERS:  # none has the moon
        name = "2600-fe0f.png" if artist == "fluent" else "2600.png"
        save(tmp_path / "emoji" / artist / name, INK[artist])
    save(tmp_path / "emoji" / "fluent" / f"{KEPT_EMOJI.lower()}.png", INK["kept"])
    for path, caption in {
        "x/bear.png": "A brown bear.",
        "food/fox.png": "A fox!",
        "x/sun.png": "A sun.",
        "x/moon.png": "The moon.",
        KEPT_STAMP: "A bear (of sorts).",
    }.items():
        save(tmp_path / "stamps" / path, INK["kept" if path == KEPT_STAMP else "stamp"])
        (tmp_path / "stamps" / path).with_suffix(".txt").write_text(f"{caption}\nfr.utf8=Un ours.\n", encoding="utf-8")
    for number, topic in enumerate(clipart.TOPICS):
        save(tmp_path / "clipart" / topic / "known.png", (250, number, 0))
        held = next(one for one in held_out("clipart") if one.startswith(f"{topic}/"))
        save(tmp_path / "clipart" / held, (number, 250, 0))
    (tmp_path / "backgrounds").mkdir()
    for name, grey in {"Wood": 100, held_out("backgrounds")[0]: 200}.items():
        Image.new("RGB", (300, 280), (grey,) * 3).save(tmp_path / "backgrounds" / f"{name}.jpg")
    for module in (emoji, stamps, clipart, canvas):
        monkeypatch.setattr(module, "folder", lambda: tmp_path)
    for one in CACHES:
        one.cache_clear()
    yield
    for one in CACHES:
        one.cache_clear()


def ink(image: Image.Image, colour: tuple[int, int, int]) -> float:
    """Share of a picture that is very nearly of a colour."""
    return float((np.abs(np.asarray(image).astype(int) - np.array(colour)).max(axis=2) < 30).mean())


def test_training_shows_neither_the_other_artist_nor_what_is_held_out() -> None:
    for name, shown in SHOWN.items():
        for number in range(40):
            picture = open_set(name, "train").picture(number)
            assert picture.image.size == (SIZE, SIZE)
            assert any(ink(picture.image, INK[one]) > 0.1 for one in shown)
            assert all("held-out" not in turn.task and "other" not in turn.task for turn in picture.turns)


@pytest.mark.parametrize(
    ("place", "shown", "names"),
    [(0, "google", {"sun", "moon"}), (1, "twitter", {"sun", "moon"}), (2, "kept", {"flag of nowhere"})],
)
def test_emoji_of_the_test_take_turns(place: int, shown: str, names: set[str]) -> None:
    task, found = ("emoji/", "emoji/other-artist-", "emoji/held-out-")[place], set[str]()
    for number in range(place, 60, 3):
        picture = open_set("emoji", "test").picture(number)
        answers = {turn.task: turn.answer for turn in picture.turns}
        assert ink(picture.image, INK[shown]) > 0.1
        assert answers[f"{task}group"] == ("flags" if place == 2 else "travel")
        found.add(answers[f"{task}name"])
    assert found == names


def test_training_shows_an_emoji_by_every_artist_that_has_it() -> None:
    shown: dict[str, set[str]] = {"sun": set(), "moon": set()}
    for number in range(90):
        picture = open_set("emoji", "train").picture(number)
        (name,) = {turn.answer for turn in picture.turns if turn.task == "emoji/name"}
        shown[name] |= {artist for artist, colour in INK.items() if ink(picture.image, colour) > 0.1}
    assert shown == {"sun": {"google", *emoji.OTHERS}, "moon": {"google"}}


def test_words_that_go_with_an_emoji_are_asked_of_training_alone() -> None:
    """The commonest first; neither a word of the name, nor a number or the code of a country."""
    asked = {
        (turn.task, turn.answer)
        for split in ("train", "test")
        for number in range(40)
        for turn in open_set("emoji", split).picture(number).turns  # type: ignore[arg-type]
        if turn.question.startswith("which words")
    }
    assert asked == {("emoji/tags", "weather, bright"), ("emoji/tags", "weather, night")}


def test_held_out_stamps_are_of_a_known_kind() -> None:
    for number in range(1, 20, 2):
        picture = open_set("stamps", "test").picture(number)
        assert ink(picture.image, INK["kept"]) > 0.1
        assert ("stamps/held-out-noun", "bear") in {(turn.task, turn.answer) for turn in picture.turns}


def test_drawings_of_the_test_are_held_out() -> None:
    for number in range(14):
        picture = open_set("clipart", "test").picture(number)
        assert ink(picture.image, INK["kept"]) > 0.1
        assert picture.turns[0].answer == clipart.TOPICS[number % 7]


def test_training_shows_emoji_and_stamps_of_a_topic_beside_its_drawings() -> None:
    shown: dict[str, set[str]] = {topic: set() for topic in clipart.TOPICS}
    for number in range(280):
        picture = open_set("clipart", "train").picture(number)
        shown[picture.turns[0].answer] |= {name for name, colour in INK.items() if ink(picture.image, colour) > 0.1}
    own = {"google"}  # the ink of known drawings, too
    beside = {"buildings": {*emoji.OTHERS}, "food": {"stamp"}}
    assert shown == {topic: own | beside.get(topic, set()) for topic in clipart.TOPICS}


def test_nouns_of_stamps_are_shown_as_others_draw_them(tmp_path: Path) -> None:
    """By emoji and drawings whose name says nothing else; never by the stamps, nor by what is held out."""
    paths = ("animals/bear_1.png", "animals/big_bear.png", "food/fox_juice_box.png", "tools/roadsigns/fox.png")
    for number, path in enumerate(paths):
        save(tmp_path / "clipart" / path, (120, 120, number))
    drawn = nouns.Nouns("train").drawn
    assert {noun: {Path(path).parent.as_posix() for path in paths} for noun, paths in drawn.items()} == {
        "sun": {f"emoji/{artist}" for artist in ("google", *emoji.OTHERS)},
        "moon": {"emoji/google"},
        "bear": {"clipart/animals"},
    }
    assert drawn["bear"] == ["clipart/animals/bear_1.png"]
    asked = {turn.answer for turn in open_set("nouns", "train").picture(0).turns if turn.task != "nouns/yes-no"}
    assert len(asked) == 1
    assert asked < {*drawn}


def test_nouns_never_answer_the_question_for_an_emoji_s_own_name() -> None:
    asked = {
        name: {turn.question for number in range(60) for turn in open_set(name, "train").picture(number).turns}
        for name in ("nouns", "emoji")
    }
    same = asked["nouns"] & asked["emoji"]
    assert not [question for question in same if not question.startswith("is this ")]


@pytest.mark.parametrize(("mirror", "left"), [(False, {INK["google"]}), (True, {INK["google"], INK["twitter"]})])
def test_a_mirrored_thing_has_its_left_on_the_right_every_second_time(
    mirror: bool, left: set[tuple[int, int, int]]
) -> None:
    thing = Image.new("RGBA", (SIZE, SIZE), (*INK["google"], 255))
    thing.paste((*INK["twitter"], 255), (SIZE // 2, 0, SIZE, SIZE))
    ground, dice = Image.new("RGB", (SIZE, SIZE)), random.Random(0)
    found = {
        canvas.paste(thing, ground, dice, sizes=(1.0, 1.0), turn=0, mirror=mirror).getpixel((SIZE // 4, SIZE // 2))
        for _ in range(12)
    }
    assert found == left


def test_a_drawing_is_of_one_topic_and_one_split(tmp_path: Path) -> None:
    for path in ("tools/again.png", "food/both.png", "people/both.png"):
        save(tmp_path / "clipart" / path, (250, clipart.TOPICS.index("tools") if "again" in path else 99, 0))
    clipart.drawings.cache_clear()
    found = clipart.drawings()
    assert {len(found[topic]) for topic in clipart.TOPICS} == {2}
    assert "tools/again.png" in found["tools"]
    assert not any("both" in path for paths in found.values() for path in paths)


def test_yes_is_said_of_what_is_shown_and_of_nothing_else() -> None:
    said: set[str] = set()
    for name in ("stamps", "nouns", "clipart"):
        for number in range(60):
            turns = open_set(name, "train").picture(number).turns
            names = {turn.answer for turn in turns if turn.task.endswith(("noun", "topic"))}
            for turn in turns:
                if turn.task.endswith("yes-no"):
                    said.add(turn.answer)
                    assert (turn.answer == "yes") == any(turn.question.rstrip("?").endswith(f" {one}") for one in names)
    assert said == {"yes", "no"}


@pytest.mark.parametrize(
    ("caption", "said", "noun"),
    [
        ("A peahen (a female).", "peahen", "peahen"),
        ("A pair of scissors.", "scissors", "scissors"),
        ("A ripe, red tomato!", "ripe red tomato", "tomato"),
        ("A bun, also called a roll.", "bun", "bun"),
        ("A “Fuji” apple.", "fuji apple", "apple"),
        ("A cup of tea.", "cup of tea", "cup"),
        ("An oven! It is hot.", "oven", "oven"),
        ("A sea lion.", "sea lion", "sea lion"),
        ("Remember to wash your hands!", "", ""),
        ("A cold wet old grey fat happy dog.", "", ""),
    ],
)
def test_what_a_caption_says(caption: str, said: str, noun: str) -> None:
    assert stamps.said(caption) == said
    assert (stamps.head_noun(said) if said else "") == noun


def test_what_is_held_out_is_named_once() -> None:
    for part in ("emoji", "stamps", "clipart", "backgrounds"):
        assert len(held_out(part)) == len(set(held_out(part))) > 3


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["emoji", "stamps", "nouns", "clipart", "texts"])
def test_enough_is_asked_of_every_picture(name: str, split: str) -> None:
    drawn = open_set(name, split)  # type: ignore[arg-type]
    assert all(len(drawn.picture(number).turns) >= LEAST for number in range(12))


@pytest.mark.parametrize("split", ["train", "test"])
def test_texts_asks_questions_of_its_split(split: str) -> None:
    known, new = texts.parts()
    own = new if split == "test" else known
    drawn = open_set("texts", split)  # type: ignore[arg-type]
    for number in range(6):
        picture = drawn.picture(number)
        assert picture.image.tobytes() == drawn.grounds[number % 3].picture(number).image.tobytes()  # type: ignore[attr-defined]
        assert all(own[turn.question] == turn.answer and turn.task == "texts" for turn in picture.turns)
