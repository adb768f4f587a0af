"""Every format in one mixture, read from real files, trained on; each id comes once an epoch."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.helpers import picture
from tests.train.processes import ids_by_step, lines
from vlora.data.shards import Input, convert, parse_size
from vlora.train.config import load_config
from vlora.train.run import train

datasets = pytest.importorskip("datasets")
ROWS = 4


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed, size=(20, 24)).save(buffer, "PNG")
    return buffer.getvalue()


def turns(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "<image>What is it?"},
        {"role": "assistant", "content": f"It is number {number}, " + "very " * number + "nice."},
    ]


def pictures(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(ROWS):
        (folder / f"{number}.png").write_bytes(png(number))
    return [f"{number}.png" for number in range(ROWS)]


def llava(folder: Path) -> dict[str, Any]:
    roles = {"user": "human", "assistant": "gpt"}
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(pictures(folder)):
        said = [{"from": roles[turn["role"]], "value": turn["content"]} for turn in turns(number)]
        rows.append({"id": str(number), "image": name, "conversations": said})
    del rows[-1]["image"]  # a row of plain text
    rows[-1]["conversations"][0]["value"] = "Just words."
    (folder / "llava.json").write_text(json.dumps(rows))
    return {"format": "llava", "path": str(folder / "llava.json")}


def jsonl(folder: Path) -> dict[str, Any]:
    rows = [{"messages": turns(number), "images": [name]} for number, name in enumerate(pictures(folder))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"format": "messages", "path": str(folder / "rows.jsonl")}


def parquet(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    rows = [{"messages": turns(number), "images": [{"bytes": png(number), "path": None}]} for number in range(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return {"format": "messages", "path": str(folder / "rows.parquet")}


def captions(folder: Path) -> dict[str, Any]:
    names = pictures(folder)
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *([name, f'A "fine" {name}, yes'] for name in names)])
    return {"format": "captions", "path": str(folder / "captions.csv"), "prompts": ["Describe it.", "What is this?"]}


def text_files(folder: Path) -> dict[str, Any]:
    for name in pictures(folder):
        (folder / name).with_suffix(".txt").write_text(f"A picture, {name}")
    return {"format": "folder", "path": str(folder)}


def tars(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for number in range(ROWS // 2):
                for suffix, content in (("png", png(number)), ("txt", b"Something in a tar")):
                    member = tarfile.TarInfo(f"{shard}{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return {"format": "webdataset", "path": str(folder / "*.tar")}


def hf_dataset(folder: Path) -> dict[str, Any]:
    rows = {
        "messages": [turns(number) for number in range(ROWS)],
        "images": [[{"bytes": png(number), "path": None}] for number in range(ROWS)],
    }
    features = datasets.Dataset.from_dict(rows).features
    features["images"] = datasets.List(datasets.Image(decode=False))
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return {"format": "dataset", "path": str(folder)}


def shards(folder: Path) -> dict[str, Any]:
    source = jsonl(folder / "rows")
    convert([Input(**source)], folder / "shards", size=parse_size("3rows"))
    return {"format": "shards", "path": str(folder / "shards")}


FORMATS: dict[str, Callable[[Path], dict[str, Any]]] = {
    one.__name__: one for one in (llava, jsonl, parquet, captions, text_files, tars, hf_dataset, shards)
}


@pytest.mark.parametrize("weighted", [False, True])
def test_a_mixture_of_all_formats_trains(tiny_config: Path, tmp_path: Path, weighted: bool) -> None:
    fields = yaml.safe_load(tiny_config.read_text(encoding="utf-8"))
    sources = [make(tmp_path / name) | {"name": name} for name, make in FORMATS.items()]
    if weighted:
        sources = [source | {"weight": 1.0 + number} for number, source in enumerate(sources)]
    fields["data"] = {"sources": sources}
    fields["train"] |= {"steps": 8, "images_per_step": 8, "log_ids": True, "save_steps": 100}
    path = tmp_path / "mixture.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    run = tmp_path / "run"
    train(load_config(path), run_dir=run)
    told = lines(run / "metrics.jsonl")
    assert told[-1]["broken"] == 0
    assert told[-1]["samples"] == 64
    seen = ids_by_step(run)
    if weighted:
        shares = Counter(name.split("/")[0] for step in seen.values() for name in step)
        assert shares["shards"] > shares["llava"]
        return
    for epoch in (range(1, 5), range(5, 9)):
        ids = Counter(name for step in epoch for name in seen[step])
        assert set(ids.values()) == {1}
        assert Counter(name.split("/")[0] for name in ids) == dict.fromkeys(FORMATS, ROWS)
