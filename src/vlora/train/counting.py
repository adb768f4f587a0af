"""How many samples a source has, as far as its files tell cheaply; nothing is decoded and no text is kept.

llava JSON       keys of samples, counted in the bytes of the file
messages         lines, or rows of Parquet
captions         rows
folder           images with a text beside them
dataset, shards  what their index says
webdataset       not counted: it would take reading the archives
"""

from __future__ import annotations

import csv
import json
import math
import mmap
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.sets.easy_vqa import IMAGES
from .config import SourceSection, TrainConfig

CAPTIONS = 500_000_000  # bytes of a table that are still read through
SAMPLE, IMAGE = re.compile(rb'"(?:conversations|messages)"\s*:'), re.compile(rb'"images?"\s*:')
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass(frozen=True)
class Counted:
    """Samples of a source.

    Args:
        samples: how many.
        without_image: of them are plain text, as far as known.
    """

    samples: int
    without_image: int = 0


@dataclass(frozen=True)
class Amount:
    """What a run sees.

    Args:
        samples: of one pass over the data; None if nobody says.
        origin: `counted`, `limit` (of the sources), `given`, or `unknown`.
        without_image: of the counted samples.
        steps: optimiser steps; None if they are so many passes over an unknown number of samples.
        seen: samples in all of them.
    """

    samples: int | None
    origin: str
    without_image: int
    steps: int | None
    seen: int | None


def count(source: SourceSection) -> Counted | None:
    """Samples of a source, None if its files are not there or do not tell."""
    if source.format == "easy-vqa":
        return _cut(Counted(IMAGES["test" if source.split == "test" else "train"]), source.limit)
    reader = {
        "llava": _json,
        "messages": _messages,
        "captions": _captions,
        "folder": _folder,
        "dataset": _dataset,
        "shards": _shards,
    }.get(source.format)
    paths = _paths(source.path)
    if reader is None or not paths:
        return None
    try:
        counts = [reader(path, source) for path in paths]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error):
        return None  # what is wrong with a file is told when it is read for training
    known = [each for each in counts if each is not None]
    if len(known) < len(counts):
        return None
    total = Counted(sum(each.samples for each in known), sum(each.without_image for each in known))
    return _cut(total, source.limit)


def amount_of(config: TrainConfig, given: int | None) -> tuple[Amount, list[Counted | None]]:
    """What a run sees, and the samples of each source.

    Args:
        config: the experiment.
        given: samples of a pass over the data, in place of what the files and the sources' limits tell.
    """
    sources, train = config.data.sources, config.train
    counts = [count(source) for source in sources]
    known = [each for each in counts if each is not None]
    limits = [each.samples if each else source.limit for each, source in zip(counts, sources, strict=True)]
    samples, origin = given, "given" if given else "unknown"
    if given is None and all(limit is not None for limit in limits):
        samples = sum(limit for limit in limits if limit is not None)
        origin = "counted" if len(known) == len(counts) else "limit"
    steps = train.steps
    if train.epochs is not None and samples is not None:
        steps = max(1, math.ceil(train.epochs * samples / train.images_per_step))
    seen = None
    if train.steps is not None:
        seen = train.steps * train.images_per_step
    elif train.epochs is not None and samples is not None:
        seen = round(train.epochs * samples)
    without = sum(each.without_image for each in known)
    return Amount(samples, origin, min(without, samples or 0), steps, seen), counts


def name_of(source: SourceSection) -> str:
    """What a source is called in a sentence."""
    return source.name or source.path or source.format


def _cut(counted: Counted, limit: int | None) -> Counted:
    if limit is None or counted.samples <= limit:
        return counted
    return Counted(limit, round(counted.without_image * limit / counted.samples))


def _paths(pattern: str | None) -> list[Path]:
    if pattern is None:
        return []
    path = Path(pattern)
    if path.exists():
        return [path]
    if not any(letter in pattern for letter in "*?["):
        return []
    base = Path(path.anchor or ".")
    return sorted(base.glob(str(path.relative_to(base) if path.anchor else path)))


def _json(path: Path, _: SourceSection) -> Counted | None:
    """Keys in the bytes: `"image"` within a text is written with its quotes escaped."""
    if path.is_dir():
        return _all(path, ("*.json",), _json, _)
    if not path.stat().st_size:
        return Counted(0)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        samples, images = (_keys(content, key) for key in (SAMPLE, IMAGE))
    return Counted(samples, max(0, samples - images))


def _keys(content: Any, key: re.Pattern[bytes]) -> int:
    return sum(1 for match in key.finditer(content) if content[match.start() - 1 : match.start()] != b"\\")


def _messages(path: Path, source: SourceSection) -> Counted | None:
    if path.is_dir():
        return _all(path, ("*.jsonl", "*.parquet"), _messages, source)
    return _parquet(path) if path.suffix == ".parquet" else _json(path, source)


def _parquet(path: Path) -> Counted | None:
    try:
        from pyarrow import parquet
    except ImportError:
        return None
    reader: Any = parquet
    return Counted(int(reader.ParquetFile(path).metadata.num_rows))


def _captions(path: Path, source: SourceSection) -> Counted | None:
    if path.is_dir():
        return _all(path, ("*.csv", "*.tsv"), _captions, source)
    if path.stat().st_size > CAPTIONS:
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        return Counted(max(0, sum(1 for row in rows if row) - 1))


def _folder(path: Path, _: SourceSection) -> Counted | None:
    if not path.is_dir():
        return None
    pictures = (image for image in path.rglob("*") if image.suffix.lower() in PICTURES)
    return Counted(sum(1 for image in pictures if image.with_suffix(".txt").is_file()))


def _dataset(path: Path, source: SourceSection) -> Counted | None:
    indices = [path / "dataset_info.json", path / source.split / "dataset_info.json"]
    index = next((each for each in indices if each.is_file()), None)
    if index is None:
        return None
    record = json.loads(index.read_text(encoding="utf-8"))
    return Counted(int(record["splits"][source.split]["num_examples"]))


def _shards(path: Path, _: SourceSection) -> Counted | None:
    index = path / "index.json"
    if not index.is_file():
        return None
    chunks: Iterable[dict[str, Any]] = json.loads(index.read_text(encoding="utf-8"))["chunks"]
    return Counted(sum(int(chunk["chunk_size"]) for chunk in chunks))


def _all(path: Path, patterns: tuple[str, ...], reader: Any, source: SourceSection) -> Counted | None:
    counts = [reader(each, source) for pattern in patterns for each in sorted(path.glob(pattern))]
    if not counts or any(each is None for each in counts):
        return None
    return Counted(sum(each.samples for each in counts), sum(each.without_image for each in counts))
