"""What an album costs, and what it saves, on nano and this machine.

    .venv/bin/python benchmarks/album.py [--images 256] [--rounds 5] [--entries 100000] [--threads 2] [--workers 1]
        [--views 1]

    encoding    images/s of `encode` against decoding, hashing and preparing the same files without a model
    bytes       of one image: as visual parameters in each precision, as perceptual weights, as features, as the keys
                and values of visual tokens; counted for nano, by the formulas of `vlora.cost` at the paper's size
    asking      answers/s from the album against answers from the files
    finding     milliseconds to open an album of so many entries, and to find one of them by its name; its parameters
                are random, its shape is nano's

What is compared runs in turns, round after round, in one process, so that a machine whose speed drifts slows all
alike; what counts are the ratios, of medians, with their quartiles over rounds. Pictures are JPEGs of 640x480 pixels
drawn by a seed.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nano import commit, ratio
from PIL import Image

import vlora
from vlora.album.decode import Decoder
from vlora.album.encoding import _decoded
from vlora.album.entries import Entry
from vlora.album.shards import PRECISIONS, Precision, pack
from vlora.album.sources import Search
from vlora.album.writer import Pictures, Writer
from vlora.cost import cost

QUESTION = "what color is the shape?"
NEW_TOKENS = 4
BATCH = 32
FULL_SHARD = 1600


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--dtype", choices=PRECISIONS, default="int8", help="of the synthetic entries")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--views", type=int, help="looks at an image; default: as many as nano has")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    eyes = vlora.load("nano", device="cpu", views=arguments.views)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = draw(folder / "photos", arguments.images)
        report: dict[str, Any] = {
            "commit": commit(),
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            **vars(arguments),
            "bytes_per_image": sizes(eyes),
            "encoding": encoding(eyes, photos, folder / "album", arguments.rounds, arguments.workers),
            "asking": asking(eyes, photos, folder / "album", arguments.rounds),
            "finding": finding(eyes, folder / "many", arguments.entries, arguments.dtype),
        }
    show(report)
    print(json.dumps(report))


def draw(folder: Path, count: int) -> Path:
    """Pictures with large shapes and a little noise, which compress as photographs do."""
    folder.mkdir()
    for number in range(count):
        numbers = np.random.default_rng(number)
        small = Image.fromarray(numbers.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((640, 480), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + numbers.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.jpg", quality=90)
    return folder


def in_turns(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Things a second of each way, round by round, after one round to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            done = way()
            if number:
                rates[name].append(done / (time.perf_counter() - began))
    return rates


def summary(rates: dict[str, list[float]], over: str, under: str) -> dict[str, Any]:
    """Medians, and the ratio of two of them."""
    medians = {name: round(statistics.median(rate), 2) for name, rate in rates.items()}
    return {"per_second": medians, f"{over} / {under}": ratio(rates[over], rates[under])}


def encoding(eyes: vlora.Eyes, photos: Path, album: Path, rounds: int, workers: int) -> dict[str, Any]:
    """`encode` into a new album, against all that it does before the model."""

    def whole() -> int:
        shutil.rmtree(album, ignore_errors=True)
        return vlora.album.encode(eyes, photos, album, batch_size=BATCH, workers=workers).encoded

    def decoding() -> int:
        decoder = Decoder(eyes.processor.image_processor)
        return sum(one.pixels is not None for one in _decoded(decoder, list(Search([photos])), BATCH, workers))

    pixels = torch.zeros(BATCH, 3, *[eyes.model.config.vision_config.image_size] * 2)

    def model() -> int:
        with torch.inference_mode():
            return len(eyes.model.perceive(pixels))

    return summary(
        in_turns({"encode": whole, "decoding alone": decoding, "model alone": model}, rounds),
        "encode",
        "decoding alone",
    )


def asking(eyes: vlora.Eyes, photos: Path, album: Path, rounds: int) -> dict[str, Any]:
    """The same question about the same images, from what is kept and from the files."""
    opened = vlora.album.open(album)
    paths = list(opened)

    def kept() -> int:
        return sum(1 for _ in opened.ask(eyes, QUESTION, batch_size=BATCH, max_new_tokens=NEW_TOKENS))

    def files() -> int:
        for start in range(0, len(paths), BATCH):
            batch: list[Any] = paths[start : start + BATCH]
            eyes.ask(batch, [QUESTION] * len(batch), max_new_tokens=NEW_TOKENS)
        return len(paths)

    return summary(in_turns({"album": kept, "files": files}, rounds), "album", "files")


def sizes(eyes: vlora.Eyes) -> dict[str, dict[str, int]]:
    """Bytes of one image in every form: as the album keeps it, and by formula, in bfloat16."""
    generator = eyes.model.model.generator
    shape = (1, len(generator.targets), len(generator.layers), generator.config.dim)
    kept = {f"album, {d}": sum(tensor.nbytes for tensor in pack(torch.zeros(shape), d).values()) for d in PRECISIONS}
    return {"nano": kept | asdict(cost(model="nano").state_bytes), "paper": asdict(cost().state_bytes)}


def finding(eyes: vlora.Eyes, folder: Path, count: int, dtype: Precision) -> dict[str, Any]:
    """Open a large album, and find one image in it; medians in milliseconds."""
    fill(eyes, folder, count, dtype)
    names = [f"{number}.jpg" for number in random.Random(0).sample(range(count), 200)]
    steps: dict[str, list[float]] = {step: [] for step in ("open", "find", "first parameters", "parameters", "select")}

    def timed(step: str, what: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        done = what(*arguments)
        steps[step].append((time.perf_counter() - began) * 1000)
        return done

    for start in range(0, len(names), 10):
        opened = timed("open", vlora.album.open, folder)
        for number, name in enumerate(names[start : start + 10]):
            timed("find", opened.entry, name)
            timed("first parameters" if number == 0 else "parameters", opened.__getitem__, name)
        timed("select", lambda album: sum(1 for _ in album.select("7*77.jpg")), opened)
        opened.close()
    info = vlora.album.open(folder).info()
    return {
        "entries": info.files,
        "shards": info.shards,
        "gigabytes": round(info.bytes / 1e9, 3),
        "dtype": dtype,
        "milliseconds": {step: round(statistics.median(times), 3) for step, times in steps.items()},
    }


def fill(eyes: vlora.Eyes, folder: Path, count: int, dtype: Precision) -> None:
    """An album of random parameters."""
    with Writer.create(folder, eyes, dtype=dtype) as writer:
        for start in range(0, count, FULL_SHARD):
            numbers = range(start, min(count, start + FULL_SHARD))
            names = [f"{number * 0x9E3779B97F4A7C15 % 2**256:064x}"[::-1] for number in numbers]
            values = torch.randn(len(names), *writer.shape)
            files = [
                Entry(f"/photos/{number % 100:02}/{number}.jpg", None, name, 1, 1, name)
                for number, name in zip(numbers, names, strict=True)
            ]
            writer.commit(Pictures(names, [(640, 480)] * len(names), pack(values, dtype)), files)


def show(report: dict[str, Any]) -> None:
    """Tables for people."""
    print(f"commit {report['commit']}, {report['threads']} threads, {report['workers']} workers")
    for model, rows in report["bytes_per_image"].items():
        for name, size in rows.items():
            print(f"{model:>8}  {name}: {size}")
    for part in ("encoding", "asking", "finding"):
        for name, value in report[part].items():
            print(f"{part:>8}  {name}: {value}")


if __name__ == "__main__":
    main()
