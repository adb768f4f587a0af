"""A small real file of each format becomes the samples it says."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.made import Write, llava_row, messages_row, png, write_tar
from vlora.data.formats import FORMATS, open_source
from vlora.data.images import open_image
from vlora.data.sample import MARKER, Message, Source
from vlora.errors import DataError, InputError


def said(source: Source, number: int = 0) -> list[tuple[str, str]]:
    return [(one.role, one.text) for one in source[number].conversations[0]]


# -- llava ------------------------------------------------------------------------------------------------


def test_llava(jsonl: Write, pictures: Path) -> None:
    rows = [
        llava_row(0),
        llava_row(
            1,
            image=["1.png", "2.png"],
            conversations=[
                {"from": "system", "value": "s"},
                {"from": "gpt", "value": "Hello, I speak first."},
                {"from": "human", "value": "compare <image> and <image>"},
                {"from": "gpt", "value": "same"},
                {"from": "human", "value": "sure?"},
                {"from": "gpt", "value": "yes"},
            ],
        ),
        {"id": 7, "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
        llava_row(3, conversations=[{"from": "bot", "value": "x"}]),
    ]
    source = open_source("llava", jsonl(rows), images=pictures)
    assert said(source) == [("user", "<image>\nWas?"), ("assistant", "Tür 0.")]
    assert source[0].images == (str(pictures / "0.png"),)
    assert said(source, 1) == [
        ("system", "s"),
        ("user", "compare <image> and <image>"),
        ("assistant", "same"),
        ("user", "sure?"),
        ("assistant", "yes"),
    ]
    assert (source[2].id, source[2].images, said(source, 2)) == ("7", (), [("user", "q"), ("assistant", "a")])
    assert source.length(2) == 2
    assert open_image(source[0].images[0]).size == (7, 6)
    with pytest.raises(DataError, match=r"line 4.*turn from 'bot'"):
        source[3]


def test_a_pattern_is_one_source_of_several_files(jsonl: Write, tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        jsonl([llava_row(number) for number in range(3)], name)
    source = open_source("llava", tmp_path / "*.json", name="both", limit=5)
    assert (len(source), list(source.blocks), source.name) == (5, [3, 2], "both")
    assert [source[number].id for number in range(5)] == ["a/a0", "a/a1", "a/a2", "b/a0", "b/a1"]
    assert source.length(4) == source.length(0)


# -- messages ---------------------------------------------------------------------------------------------


def test_messages(jsonl: Write) -> None:
    data = png()
    blocks = [{"type": "text", "text": "is "}, {"type": "image"}, {"type": "text", "text": " this"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
    inline = [{"type": "image", "image": base64.b64encode(data).decode()}, {"type": "image"}]
    rows = [
        messages_row(0, messages=[{"role": "user", "content": blocks}, answer]),
        messages_row(1, messages=[{"role": "user", "content": inline}, answer], images=["1.png"]),
        messages_row(2, images=None),
        messages_row(3, images=[{"bytes": base64.b64encode(data).decode(), "path": "x.png"}]),
        messages_row(4, messages=[{"role": "user", "content": [{"type": "video"}]}, answer]),
        messages_row(5, messages=[{"role": "tool", "content": "x"}, answer]),
    ]
    path = jsonl(rows)
    source = open_source("messages", path)
    assert said(source) == [("user", "is <image> this"), ("assistant", "yes")]
    assert source[1].images == (data, str(path.parent / "1.png"))
    assert said(source, 2) == [("user", "q2"), ("assistant", "a2")]
    assert source[3].images == (data,)
    assert said(source, 3)[0] == ("user", "<image>\nq3")
    for number, words in ((4, "block of type 'video'"), (5, "role 'tool'")):
        with pytest.raises(DataError, match=f"line {number + 1} .*{words}"):
            source[number]


def test_messages_of_other_columns(jsonl: Write) -> None:
    row = messages_row(0)
    path = jsonl([{"chat": row["messages"], "pictures": row["images"]}])
    source = open_source("messages", path, columns={"messages": "chat", "images": "pictures"})
    assert source[0].images == (str(path.parent / "0.png"),)
    assert source.length(0) == 4


def test_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "m.parquet"
    rows = [messages_row(n, id=str(n // 2), images=[{"bytes": png(n), "path": None}]) for n in range(10)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    source = open_source("messages", path)
    assert list(source.blocks) == [4, 4, 2]
    assert [source[n].id for n in range(4)] == ["0", "0#2", "1", "1#4"]
    for number in (9, 0, 5):
        assert said(source, number) == [("user", f"<image>\nq{number}"), ("assistant", f"a{number}")]
        assert source[number].images == (png(number),)
        assert source.length(number) == 4
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_source("messages", path)
    parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    with pytest.raises(DataError, match="columns text and no messages"):
        open_source("messages", path)


# -- captions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ('image,caption\n0.png,"A ""cat"", asleep."\n1.png,"two\nlines"\n', {}),
        ('﻿Title,Filepath,more\n"A ""cat"", asleep.",0.png,1\n"two\nlines",1.png,2\n', {}),
        ('0.png\t"A ""cat"", asleep."\r\n\r\n1.png\t"two\nlines"\r\n', {}),
        ('x,0.png,"A ""cat"", asleep."\ny,1.png,"two\nlines"', {"image": "1", "caption": "2", "id": "0"}),
        ('foto,wort\n0.png,"A ""cat"", asleep."\n1.png,"two\nlines"\n', {"image": "foto", "caption": "wort"}),
    ],
)
def test_captions(tmp_path: Path, content: str, columns: dict[str, str]) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(content.encode())
    source = open_source("captions", path, columns=columns, images=tmp_path)
    assert [said(source, n)[1][1] for n in range(len(source))] == ['A "cat", asleep.', "two\nlines"]
    assert [source[n].images for n in range(2)] == [(str(tmp_path / f"{n}.png"),) for n in range(2)]
    assert [source[n].id for n in range(2)] == (["x", "y"] if "id" in columns else ["1", "2"])
    assert said(source)[0] == ("user", MARKER)
    line = content.splitlines().index(next(one for one in content.splitlines() if "1.png" in one or "two" in one)) + 1
    assert f"line {line}" in source[1].where


def test_prompts_are_chosen_by_the_id(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["image", "caption", "id"])
        writer.writerows([f"{n}.png", f"c{n}", f"k{n}"] for n in range(60))
    prompts = ("Describe it.", "What is it?", "Say what you see, in detail.")
    source = open_source("captions", path, prompts=prompts)
    asked = [said(source, n)[0][1] for n in range(60)]
    assert {one.removeprefix("<image>\n") for one in asked} == set(prompts)
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], *reversed(rows[1:])]))
    again = open_source("captions", path, prompts=prompts)
    assert [said(again, 59 - n)[0][1] for n in range(60)] == asked
    assert [source.length(n) - len(asked[n]) - len(f"c{n}") for n in range(60)] == [-1] * 60  # the line break


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"a,b,c\n1,2,3\n", "columns 'a', 'b', 'c'"),
        (b"image,caption\n", "holds no sample"),
        (b'image,caption\n0.png,"open\n' + b"x" * 200_000, "line 3|field"),
        (b"image,\xff\n", "line 1 is not UTF-8"),
        ("image,caption\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        open_source("captions", path)


def test_bad_lines_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(b"image,caption\n0.png\n1.png,\n2.png,caf\xe9\n3.png,fine\n")
    source = open_source("captions", path)
    for number, words in ((0, "has 1 columns"), (1, "nothing to learn from"), (2, "not UTF-8")):
        with pytest.raises(DataError, match=f"c.csv line {number + 2} .*{words}"):
            source[number]
    assert said(source, 3)[1] == ("assistant", "fine")


# -- folder -----------------------------------------------------------------------------------------------


def test_folder(pictures: Path) -> None:
    (pictures / "deep").mkdir()
    (pictures / ".hidden").mkdir()
    for name in ("deep/z.JPG", ".hidden/x.png", ".x.png"):
        (pictures / name).write_bytes(png())
    for number in range(4):
        (pictures / f"{number}.txt").write_text(f"text {number} é\n", encoding="utf-8")
    (pictures / "3.txt").write_bytes(b"\xff")
    (pictures / "deep" / "z.txt").write_text(" ")
    source = open_source("folder", pictures, prompts=["What?"])
    assert len(source) == 7
    assert said(source, 1) == [("user", "<image>\nWhat?"), ("assistant", "text 1 é")]
    assert (source[1].id, source[1].images) == ("1.png", (str(pictures / "1.png"),))
    for number, words in ((3, "not UTF-8"), (4, "put its text beside it as 4.txt"), (6, "nothing to learn from")):
        with pytest.raises(DataError, match=words):
            source[number]
    assert source[0].id == "0.png"


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        open_source("folder", tmp_path)


# -- webdataset -------------------------------------------------------------------------------------------


def test_tars(tmp_path: Path) -> None:
    for tar in range(2):
        samples = [
            (f"0000{tar}{n}", {"jpg": png(n), "txt": f"t{n}".encode(), "json": b'{"caption": "other"}'})
            for n in range(3)
        ]
        samples.append(("x/same", {"json": b'{"caption": "from json"}', "png": png(), "cls": b"1"}))
        write_tar(tmp_path / f"{tar:05d}.tar", samples)
    for path in (tmp_path, tmp_path / "{00000..00001}.tar", tmp_path / "*.tar"):
        source = open_source("webdataset", path)
        assert (len(source), list(source.blocks)) == (8, [4, 4])
    assert [source[n].id for n in (0, 3, 4, 7)] == ["00000" + "0", "x/same", "000010", "x/same#8"]
    assert [said(source, n)[1][1] for n in (2, 3)] == ["t2", "from json"]
    assert source[6].images == (png(2),)
    assert (source.length(6), source.length(7)) == (len(MARKER) + 2, len(MARKER) + 9)
    assert str(tmp_path / "00001.tar") in source[5].where


def test_bad_tars(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar", [("0", {"jpg": png()}), ("1", {"txt": b"t"}), ("2", {"txt": b"\xff", "png": b"x"})]
    )
    source = open_source("webdataset", path)
    for number, words in ((0, "nothing to learn from"), (1, "has no image"), (2, "not UTF-8")):
        with pytest.raises(DataError, match=f"a.tar member {number} .*{words}"):
            source[number]
    whole = write_tar(path, [(str(n), {"jpg": png(n) * 20, "txt": b"t"}) for n in range(4)]).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.tar.*(cut off|whole)"):
        open_source("webdataset", path)
    path.write_bytes(b"no tar at all")
    with pytest.raises(DataError, match="not a whole, uncompressed tar"):
        open_source("webdataset", path)
    with pytest.raises(DataError, match="no file"):
        open_source("webdataset", tmp_path / "{0..3}.tar")


# -- data sets --------------------------------------------------------------------------------------------


def hf(rows: list[dict[str, Any]], path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "q", "answer": "a"}, [("user", "<image>\nq"), ("assistant", "a")]),
        ({"text": "a"}, [("user", "<image>"), ("assistant", "a")]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            [("user", "<image>\nq"), ("assistant", "a")],
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            [("user", "<image>\nq"), ("assistant", "a")],
        ),
    ],
)
def test_data_sets(tmp_path: Path, row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    from tests.helpers import picture

    path = hf([row | {"image": picture(n, (6, 7)), "id": n // 2} for n in range(3)], tmp_path / "set")
    source = open_source("dataset", path)
    assert [source[n].id for n in range(3)] == ["0", "0#2", "1"]
    assert said(source, 2) == expected
    assert isinstance(source[2].images[0], bytes)
    assert open_image(source[2].images[0]).tobytes() == picture(2, (6, 7)).tobytes()
    assert source.length(2) == len(expected[0][1].removeprefix("<image>").strip()) + 1


def test_data_sets_that_will_not_do(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = hf([{"x": 1}], tmp_path / "set")
    with pytest.raises(DataError, match="no columns that are known"):
        open_source("dataset", path)
    with pytest.raises(DataError, match="no 'y'"):
        open_source("dataset", path, columns={"caption": "y"})
    with pytest.raises(DataError, match="cannot be loaded"):
        open_source("dataset", tmp_path / "none")
    datasets.DatasetDict({"test": datasets.Dataset.from_list([{"question": "q", "answer": "a"}])}).save_to_disk(
        tmp_path / "dict"
    )
    with pytest.raises(DataError, match="splits test and no 'train'"):
        open_source("dataset", tmp_path / "dict")
    assert said(open_source("dataset", tmp_path / "dict", split="test")) == [("user", "q"), ("assistant", "a")]
    with pytest.raises(InputError, match="--stream"):
        open_source("dataset", path, streaming=True)


# -- all --------------------------------------------------------------------------------------------------


def test_easy_vqa() -> None:
    pytest.importorskip("easy_vqa")
    source = open_source("easy-vqa", augment=True)
    assert (len(source), source.name, source.augment) == (4000, "easy-vqa", True)
    assert sum(len(source[n].conversations) for n in range(0, 4000, 100)) > 300
    assert source[0].conversations[0] == (
        Message("user", "<image>what is the blue shape?"),
        Message("assistant", "rectangle"),
    )
    assert len(open_source("easy-vqa", split="test")) == 1000


def test_options_that_are_none(tmp_path: Path, jsonl: Write) -> None:
    with pytest.raises(InputError, match="no format 'xml'"):
        open_source("xml", tmp_path)
    with pytest.raises(InputError, match="llava has no prompts"):
        open_source("llava", jsonl([llava_row(0)]), prompts=["x"])
    with pytest.raises(DataError, match="no folder"):
        open_source("llava", jsonl([llava_row(0)]), images=tmp_path / "none")
    for format in set(FORMATS) - {"easy-vqa"}:
        with pytest.raises(InputError, match="needs a path"):
            open_source(format)


def test_a_file_that_goes_away(jsonl: Write) -> None:
    path = jsonl([llava_row(0)])
    source = open_source("llava", path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        source[0]


def test_names_come_from_paths(jsonl: Write) -> None:
    assert open_source("llava", jsonl([llava_row(0)], "blip laion (558k).json")).name == "blip-laion-558k"
    assert open_source("llava", jsonl([llava_row(0)]), name="mine").name == "mine"
    assert json.loads(json.dumps(open_source("llava", jsonl([llava_row(0)])).augment)) is False
