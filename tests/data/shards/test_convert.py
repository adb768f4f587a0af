"""Shards hold what the sources held, resume where they were stopped, and notice when they are not what was written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.made import llava_row, png, write_tar
from vlora.data.formats import open_source
from vlora.data.shards import Input, ShardSize, convert, parse_size, verify
from vlora.data.shards import write as writing
from vlora.errors import DataError, InputError

SIZE = ShardSize(0, 3)


@pytest.fixture
def llava(tmp_path: Path, pictures: Path) -> Input:
    """Ten rows: a broken image, a missing one, one without an answer, one without an image."""
    (pictures / "1.png").write_bytes(png(1)[:-30])
    rows = [llava_row(n) for n in range(5)]
    turns = [{"from": "human", "value": "both?"}, {"from": "gpt", "value": "both."}]
    rows += [llava_row(5, image="none.png"), llava_row(6, image=["2.png", "3.png"], conversations=turns)]
    rows += [{"id": "text", "conversations": rows[0]["conversations"][1:] * 2}]
    rows += [llava_row(8, image=None, conversations=[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}])]
    rows += [llava_row(9, image="0.png")]
    path = tmp_path / "l.json"
    path.write_text(json.dumps(rows, indent=1))
    return Input("llava", str(path), images=str(pictures))


@pytest.fixture
def tars(tmp_path: Path) -> Input:
    """Ten images in a tar."""
    path = write_tar(tmp_path / "t.tar", [(f"{n:03d}", {"png": png(n), "txt": f"t{n}".encode()}) for n in range(10)])
    return Input("webdataset", str(path))


def test_what_was_read_is_there(llava: Input, tars: Input, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    done = convert([llava, tars], tmp_path / "out", size=SIZE, tell=lambda *now: told.append(now))
    assert (done.samples, done.images, done.broken_images, done.unusable) == (17, 17, 2, 1)
    assert told[-1] == (20, 20)
    source = open_source("shards", tmp_path / "out")
    assert list(source.blocks) == [2, 2, 2, 1, 3, 3, 3, 1]
    before = {
        f"l/{one.id}": one for one in map(open_source("llava", llava.path, images=llava.images).__getitem__, (0, 6))
    }
    found = {source[number].id: source[number] for number in range(len(source))}
    assert len(found) == 17
    for id, one in before.items():
        assert found[id].conversations == one.conversations
        assert found[id].images == tuple(Path(str(image)).read_bytes() for image in one.images)
    assert found["t/003"].images == (png(3),)
    assert source.length(0) == len("<image>\nWas?Tür 0.")
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [one["id"] for one in skipped if one["kind"] == "image"] == ["l/a1", "l/a5"]
    assert "1.png" in skipped[0]["reason"]
    (unusable,) = (one["reason"] for one in skipped if one["kind"] == "sample")
    assert "the user should speak" in unusable or "nothing to learn" in unusable
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".arrow") == [
        "dataset_info.json",
        "index.json",
        "skipped.jsonl",
        "state.json",
    ]


def test_it_is_a_data_set_too(tars: Input, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    convert([tars], tmp_path / "out", size=SIZE)
    found = datasets.load_from_disk(tmp_path / "out")
    assert found.column_names == ["id", "images", "conversations", "characters"]
    assert found[7]["id"] == "007"
    assert found[7]["images"] == [png(7)]
    assert found[7]["conversations"] == [[{"role": "user", "text": "<image>"}, {"role": "assistant", "text": "t7"}]]


def test_it_goes_on_where_it_was_stopped(tars: Input, tmp_path: Path) -> None:
    out, stop = tmp_path / "out", tmp_path / "whole"
    convert([tars], stop, size=SIZE)

    def interrupt(done: int, total: int | None) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert([tars], out, size=SIZE, tell=interrupt)
    assert not list(out.glob(".data*"))
    with pytest.raises(DataError, match="has not finished"):
        open_source("shards", out)
    with pytest.raises(InputError, match="other sources, or with other options"):
        convert([tars], out, size=ShardSize(0, 4))
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.arrow")}
    assert len(finished) == 2
    done = convert([tars], out, size=SIZE)
    assert (done.kept, done.samples) == (2, 10)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    hashes = [[one["sha256"] for one in json.loads((f / "index.json").read_text())["shards"]] for f in (out, stop)]
    assert hashes[0] == hashes[1]
    again = convert([tars], out, size=SIZE)
    assert (again.kept, again.samples) == (4, 10)
    with pytest.raises(InputError, match="other sources or options"):
        convert([tars], out, size=SIZE, check=False)


def test_streams(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = [{"id": "same", "question": f"q{n}", "answer": f"a{n}" * (n != 4)} for n in range(10)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "p.parquet")
    one = Input("dataset", str(tmp_path / "p.parquet"), streaming=True)

    def interrupt(done: int, total: int | None) -> None:
        assert total is None
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert([one], tmp_path / "out", size=SIZE, tell=interrupt)
    done = convert([one], tmp_path / "out", size=SIZE)
    assert (done.samples, done.unusable, done.kept) == (9, 1, 2)
    source = open_source("shards", tmp_path / "out")
    assert [source[n].id for n in range(9)] == [f"same#{n + 1}" for n in range(10) if n != 4]
    with pytest.raises(InputError, match="not streamed"):
        convert([Input("llava", "x", streaming=True)], tmp_path / "other", size=SIZE)


def test_sizes_in_megabytes(tmp_path: Path) -> None:
    data = png() * 400
    path = write_tar(tmp_path / "t.tar", [(f"{n:03d}", {"png": data, "txt": b"t"}) for n in range(40)])
    convert([Input("webdataset", str(path))], tmp_path / "out", size=parse_size("1MB"), check=False)
    sizes = [one["bytes"] for one in json.loads((tmp_path / "out" / "index.json").read_text())["shards"]]
    assert len(sizes) > 2
    assert all(900_000 < size < 1_100_000 for size in sizes[:-1])
    for text in ("", "0MB", "10", "tenMB"):
        with pytest.raises(InputError, match="256MB or as 10000rows"):
            parse_size(text)


def test_what_was_changed_is_noticed(tars: Input, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert([tars], out, size=SIZE)
    assert verify(out).problems == ()
    first, second = out / "data-00000.arrow", out / "data-00001.arrow"
    whole = first.read_bytes()
    first.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert "hash differs" in verify(out).problems[0]
    second.unlink()
    assert "no such file" in verify(out).problems[1]
    with pytest.raises(DataError, match=r"data-00001\.arrow is not there"):
        open_source("shards", out)
    second.write_bytes(whole)
    index = json.loads((out / "index.json").read_text())
    index["shards"][1] = index["shards"][0] | {"file": second.name}
    first.write_bytes(whole)
    (out / "index.json").write_text(json.dumps(index))
    assert verify(out).problems == (f"3 ids of {out} come more than once.",)
    (out / "index.json").write_text("{}")
    with pytest.raises(DataError, match="has the version None"):
        open_source("shards", out)


def test_a_full_disk(tars: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(writing._Hashed):
        def write(self, data: Any) -> int:
            if self.count > 500:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_Hashed", Full)
        with pytest.raises(DataError, match=r"no space left on device.*make room"):
            convert([tars], tmp_path / "out", size=SIZE)
    assert not list((tmp_path / "out").glob("*.arrow"))
    assert convert([tars], tmp_path / "out", size=SIZE).samples == 10


def test_folders_that_will_not_do(tars: Input, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="something else"):
        convert([tars], tmp_path / "used", size=SIZE)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        convert([tars], tmp_path / "file", size=SIZE)
    with pytest.raises(InputError, match="Two sources are named 't'"):
        convert([tars, tars], tmp_path / "out", size=SIZE)
    with pytest.raises(DataError, match="holds no shards"):
        open_source("shards", tmp_path / "used")


def test_not_one_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("0", {"png": b"x", "txt": b"t"})])
    with pytest.raises(DataError, match="Not one sample can be used"):
        convert([Input("webdataset", str(path))], tmp_path / "out", size=SIZE)


def test_only_one_at_a_time(tars: Input, tmp_path: Path) -> None:
    def second(done: int, total: int | None) -> None:
        with pytest.raises(InputError, match="Another conversion"):
            convert([tars], tmp_path / "out", size=SIZE)

    assert convert([tars], tmp_path / "out", size=SIZE, tell=second).samples == 10


# -- the command, killed ----------------------------------------------------------------------------------


def command(*arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "vlora.cli", "data", *map(str, arguments)]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def children(process: subprocess.Popen[str]) -> list[int]:
    """Handles of a process's children, which tell when they end."""
    try:
        ids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [os.pidfd_open(int(id)) for id in ids]
    except OSError:
        return []


def notes(folder: Path) -> int:
    """Shards that are finished."""
    return len(list((folder / ".parts").glob("[0-9]*.json")))


def wait_for(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Until so many shards are finished, and then a moment longer."""
    while notes(folder) < count:
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"it ended with {process.wait(timeout=0.01)}")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [(f"{n:04d}", {"png": png(n), "txt": f"t{n}".encode()}) for n in range(4000)])
    options = ("--format", "webdataset", "--shard-size", "100rows", "--workers", "2", "--json")
    dice = random.Random(0)
    kills = finished = 0
    while finished < 30:
        process = command("convert", path, tmp_path / "out", *options)
        wait_for(process, tmp_path / "out", finished + dice.randint(1, 6))
        workers = children(process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        for worker in workers:
            assert select.select([worker], [], [], 30)[0], "a worker has outlived its parent"
            os.close(worker)
        now = notes(tmp_path / "out")
        assert now > finished  # nothing that was finished is lost
        finished = now
    process = command("convert", path, tmp_path / "out", *options)
    said, wrong = process.communicate()
    assert process.returncode == 0, wrong
    done = json.loads(said)
    assert kills > 3
    assert (done["samples"], done["shards"]) == (4000, 40)
    assert done["kept"] == finished
    assert verify(tmp_path / "out").problems == ()
    convert([Input("webdataset", str(path))], tmp_path / "whole", size=ShardSize(0, 100))
    both = [json.loads((tmp_path / name / "index.json").read_text())["shards"] for name in ("out", "whole")]
    assert both[0] == both[1]
