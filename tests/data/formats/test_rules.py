"""What every sample keeps to, whatever it was written in."""

from __future__ import annotations

import base64
import re

import pytest

from vlora.data.formats.rules import check, image_at
from vlora.data.sample import MARKER, Message, Role
from vlora.errors import DataError


def chat(*turns: tuple[Role, str]) -> list[Message]:
    return [Message(role, text) for role, text in turns]


def test_a_conversation_that_names_no_image_gets_the_markers_first() -> None:
    found = check(chat(("system", "s"), ("user", "q"), ("assistant", "a")), 2, "f line 1")
    assert [one.text for one in found] == ["s", f"{MARKER}{MARKER}\nq", "a"]


def test_markers_stay_where_they_are() -> None:
    turns = chat(("user", "q"), ("assistant", f"no {MARKER} here"), ("user", f"and {MARKER}?"), ("assistant", "a"))
    assert check(turns, 1, "f line 1") == tuple(turns)


def test_an_empty_question_about_an_image_is_its_marker() -> None:
    assert check(chat(("user", ""), ("assistant", "a")), 1, "f line 1")[0].text == MARKER


@pytest.mark.parametrize(
    ("turns", "images", "words"),
    [
        ([("user", "q")], 0, "nothing to learn from"),
        ([("user", "q"), ("assistant", " \n")], 0, "nothing to learn from"),
        ([], 0, "nothing to learn from"),
        ([("assistant", "a")], 0, "the user should speak"),
        ([("user", "q"), ("user", "q"), ("assistant", "a")], 0, "the assistant should speak"),
        ([("user", "q"), ("system", "s"), ("assistant", "a")], 0, "system message after the first"),
        ([("system", "s"), ("system", "s"), ("user", "q"), ("assistant", "a")], 0, "system message after the first"),
        ([("user", f"{MARKER} q"), ("assistant", "a")], 0, "names 1 image"),
        ([("user", f"{MARKER}{MARKER} q"), ("assistant", "a")], 1, "names 2 images"),
        ([("user", f"{MARKER} q"), ("assistant", "a")], 2, "names 1 image"),
    ],
)
def test_refused_with_its_place(turns: list[tuple[Role, str]], images: int, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        check(chat(*turns), images, "rows.jsonl line 7")
    assert str(caught.value).startswith("rows.jsonl line 7 ")


def test_images() -> None:
    data = bytes(range(256)) * 2
    text = base64.b64encode(data).decode()
    assert image_at("a/b.png", "/root", "w") == "/root/a/b.png"
    assert image_at("/a/b.png", "/root", "w") == "/a/b.png"
    assert image_at("../b.png", "/root", "w") == "/root/../b.png"
    for given in (data, text, f"data:image/png;base64,{text}", {"bytes": data, "path": "x"}, {"bytes": text}):
        assert image_at(given, "/root", "w") == data
    assert image_at({"bytes": None, "path": "x.png"}, "/root", "w") == "/root/x.png"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("https://host/a.png", "address"),
        ("data:image/png;base64,***", "not valid base64"),
        (7, "type int"),
        ("", "type str"),
        ({}, "type NoneType"),
    ],
)
def test_no_images(given: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        image_at(given, "/root", "f line 3")
    assert str(caught.value).startswith("f line 3 ")
