"""JSON of any size: rows are found where they lie, and whatever is wrong is told with its line."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from tests.data.made import Write, llava_row, messages_row
from vlora.data.formats import index, json_array, open_source
from vlora.data.sample import Source
from vlora.errors import DataError


def texts(source: Source) -> list[str]:
    return [source[number].conversations[0][-1].text for number in range(len(source))]


@pytest.mark.parametrize("chunk", [1 << 23, 5, 64])
@pytest.mark.parametrize(
    "layout", [{}, {"indent": 2}, {"ensure_ascii": False, "indent": 1}, {"separators": (",", ":")}]
)
def test_an_array_in_any_layout(
    tmp_path: Path, layout: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "CHUNK", chunk)
    rows = [llava_row(number, note=']} " \\ ü') for number in range(5)]
    path = tmp_path / "l.json"
    path.write_text("\ufeff \n" + json.dumps(rows, **layout) + " \n", encoding="utf-8")
    source = open_source("llava", path)
    assert texts(source) == [f"Tür {number}." for number in range(5)]
    assert [source[number].id for number in range(5)] == [f"a{number}" for number in range(5)]
    if "indent" in layout:
        lines = path.read_text(encoding="utf-8").splitlines()
        line = int(source[3].where.split(" line ")[1].split()[0])
        assert lines[line - 1].strip() == "{"
        assert '"a3"' in lines[line]


def test_lines(jsonl: Write) -> None:
    path = jsonl([messages_row(number) for number in range(3)])
    path.write_text(path.read_text() + "\n\n" + json.dumps(messages_row(3)))  # blank lines, and no end of the last
    source = open_source("messages", path)
    assert texts(source) == ["a0", "a1", "a2", "a3"]
    assert [source[number].id for number in range(4)] == ["1", "2", "3", "4"]
    assert source[3].where.endswith("line 6 item 4")
    assert source[-1] == source[3]
    assert list(source.blocks) == [4]
    with pytest.raises(IndexError):
        source[4]


def test_ids_that_come_again_are_numbered(jsonl: Write) -> None:
    source = open_source("messages", jsonl([messages_row(n, id="x" if n % 2 else n) for n in range(4)]))
    assert [source[number].id for number in range(4)] == ["0", "x", "2", "x#4"]


def test_a_bad_row_does_not_spoil_the_others(jsonl: Write) -> None:
    path = jsonl([messages_row(0), [1], {"messages": 3}, messages_row(1, messages=[]), messages_row(2)])
    path.write_bytes(path.read_bytes() + b'{"cut\n' + b'{"messages": "\xff"}\n' + b"[" * 100_000 + b"\n")
    source = open_source("messages", path)
    assert texts_of(source, 0) == texts_of(source, 0) == "a0"
    assert texts_of(source, 4) == "a2"
    for number, words in (
        (1, "holds list"),
        (2, "has no messages"),
        (3, "has no messages"),
        (5, "is not JSON"),
        (6, "is not UTF-8"),
        (7, "JSON|nested"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            source[number]
        assert f"{path} line {number + 1}" in str(caught.value)
        assert source.length(number) == 0


def texts_of(source: Source, number: int) -> str:
    return source[number].conversations[0][-1].text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"  \n ", "holds no sample"),
        (b"[]", "holds no sample"),
        (b"hello\n", "line 1 is not JSON"),
        (b'[{"a": 1}, {"b"', "line 1"),
        (b'[{"a": 1},\n {"b": 2}', "ends at line 2"),
        (b'[{"a": 1} {"b": 2}]', "no JSON array"),
        (b'[{"a": 1},]', "no JSON array"),
        (b'[{"a": 1}] x', "no JSON array"),
        ("[{}]".encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08\x00", "compressed"),
        (b"PAR1xxxx", "Parquet"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        open_source("llava", path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        open_source("llava", tmp_path / "none.json")


def test_an_index_is_kept_and_mapped(jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "KEPT_FROM", 1000)
    path = jsonl([messages_row(number) for number in range(50)])
    first = open_source("messages", path)
    kept = list((tmp_path / "cache" / "indexes").glob("*/start.npy"))
    assert len(kept) == 1
    lock = FileLock(f"{kept[0].parent}.lock", timeout=0)
    with lock:  # nobody holds it any more
        pass
    found = open_source("messages", path)
    assert isinstance(found._index["start"], np.memmap)  # type: ignore[attr-defined]
    assert texts(found) == texts(first)
    pickled = pickle.dumps(found)
    assert len(pickled) < 2000  # where the columns lie, not what they hold
    assert texts(pickle.loads(pickled)) == texts(first)
    # Another file under the same name is read anew.
    jsonl([messages_row(number) for number in range(20)])
    os.utime(path, ns=(1, 1))
    assert len(open_source("messages", path)) == 20


def test_a_big_file_is_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    word = "x" * 2000
    with path.open("w") as file:
        file.write("[" + ",\n".join(json.dumps(llava_row(n, note=word)) for n in range(20_000)) + "]")
    size = path.stat().st_size
    assert size > 40_000_000
    tracemalloc.start()
    source = open_source("llava", path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 20_000
    assert kept < 2_000_000
    assert peak < 60_000_000  # a few windows of 8 MiB, whatever the file
    assert source[19_999].conversations[0][1].text == "Tür 19999."
