"""Sources are read in forked and spawned workers as they are here, and a mixture of all formats is one data set."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import ConcatDataset, DataLoader

from tests.data.made import llava_row, messages_row, png, write_tar
from vlora.data.formats import open_source
from vlora.data.sample import Sample, Source
from vlora.data.shards import Input, convert, parse_size


@pytest.fixture
def every(tmp_path: Path, pictures: Path) -> list[Source]:
    """A source of each format that holds files."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    (tmp_path / "l.json").write_text(json.dumps([llava_row(n) for n in range(5)]))
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(messages_row(n)) for n in range(5)))
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *[[f"{n}.png", f"c{n}"] for n in range(5)]])
    for number in range(6):
        (pictures / f"{number}.txt").write_text(f"t{number}")
    write_tar(tmp_path / "t.tar", [(f"{n}", {"png": png(n), "txt": b"t"}) for n in range(5)])
    rows = [messages_row(n, images=[{"bytes": png(n), "path": None}]) for n in range(5)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "p.parquet")
    convert([Input("webdataset", str(tmp_path / "t.tar"))], tmp_path / "shards", size=parse_size("2rows"))
    return [
        open_source("llava", tmp_path / "l.json", images=pictures),
        open_source("messages", tmp_path / "m.jsonl", images=pictures),
        open_source("messages", tmp_path / "p.parquet"),
        open_source("captions", tmp_path / "c.csv", images=pictures, prompts=["What?"]),
        open_source("folder", pictures, limit=5),
        open_source("webdataset", tmp_path / "t.tar"),
        open_source("dataset", tmp_path / "set"),
        open_source("shards", tmp_path / "shards"),
    ]


def read(sources: list[Source], **options: Any) -> list[Sample]:
    return list(DataLoader(ConcatDataset(sources), batch_size=None, collate_fn=same, **options))  # type: ignore[arg-type]


def same(sample: Sample) -> Sample:
    return sample


def test_every_source_is_whole(every: list[Source]) -> None:
    for source in every:
        assert len(source) == 5
        assert sum(source.blocks) == 5
        ids = [source[number].id for number in range(5)]
        assert len(set(ids)) == 5
        assert all(source[number].images for number in range(5))
        longest = [max(sum(len(m.text) for m in c) for c in source[number].conversations) for number in range(5)]
        assert all(abs(source.length(number) - longest[number]) <= len("<image>\n") for number in range(5))
        again = pickle.loads(pickle.dumps(source))
        assert [again[number] for number in range(5)] == [source[number] for number in range(5)]


def test_forked_workers(every: list[Source]) -> None:
    here = read(every)  # everything is open when the workers are forked
    assert len(here) == 40
    assert read(every, num_workers=2, multiprocessing_context="fork") == here


@pytest.mark.slow
def test_spawned_workers(every: list[Source]) -> None:
    assert read(every, num_workers=2, multiprocessing_context="spawn") == read(every)
