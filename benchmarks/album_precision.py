"""What storing an album in fewer bits does to the answers of nano.

    .venv/bin/python benchmarks/album_precision.py [--questions 1000] [--seed 0]

Questions of easy-VQA's test split, drawn by the seed, about images that are encoded once into an album in float32,
which `merge` then copies at the smaller precisions. Each question is answered from the pixels and from each album:
accuracy with its 95 % interval, and how many answers are those of float32, word for word.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

# The folder of this file is on the path of a script.
from nano import commit

import vlora
from vlora.album.shards import PRECISIONS
from vlora.data.sets.easy_vqa import Question, load
from vlora.evaluate.easy_vqa import MAX_NEW_TOKENS, sample
from vlora.evaluate.scoring import is_correct, score

BATCH = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    eyes = vlora.load("nano", device="cpu")
    data = load("test")
    questions = sample(data.questions, arguments.questions, arguments.seed)
    paths = {question: data.image_path(question.image_id) for question in questions}
    with tempfile.TemporaryDirectory() as folder:
        albums = encode(eyes, sorted(set(paths.values())), Path(folder))
        ways: dict[str, Callable[[Question], Any]] = {"pixels": lambda question: paths[question]}
        ways |= {name: lambda question, album=album: album[paths[question]] for name, album in albums.items()}
        answers = {name: answer(eyes, questions, seen) for name, seen in ways.items()}
        sizes = {name: album.info().bytes_per_image for name, album in albums.items()}
    rows = {name: row(questions, answers, name) | {"bytes_per_image": sizes.get(name)} for name in ways}
    show(rows)
    report = {"commit": commit(), "machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    report |= {"questions": len(questions), "images": len(set(paths.values())), "seed": arguments.seed}
    print(json.dumps(report | {"precisions": rows}))


def encode(eyes: vlora.Eyes, paths: Sequence[Path], folder: Path) -> dict[str, vlora.album.Album]:
    """An album in each precision, all of one encoding."""
    vlora.album.encode(eyes, paths, folder / PRECISIONS[0])
    for precision in PRECISIONS[1:]:
        vlora.album.merge([folder / PRECISIONS[0]], folder / precision, dtype=precision)
    return {precision: vlora.album.open(folder / precision, eyes=eyes) for precision in PRECISIONS}


def answer(eyes: vlora.Eyes, questions: Sequence[Question], seen: Callable[[Question], Any]) -> list[str]:
    """Answers in the order of the questions; in batches of prompts of one length, which need no padding."""
    lengths = {text: len(eyes.tokens([text])["input_ids"][0]) for text in {q.question for q in questions}}
    ordered = sorted(questions, key=lambda q: (lengths[q.question], q.image_id))
    answers: dict[Question, str] = {}
    for _, same in groupby(ordered, key=lambda q: lengths[q.question]):
        group = list(same)
        for start in range(0, len(group), BATCH):
            batch = group[start : start + BATCH]
            images = {q.image_id: seen(q) for q in batch}
            texts = eyes.ask(
                [images[q.image_id] for q in batch], [q.question for q in batch], max_new_tokens=MAX_NEW_TOKENS
            )
            answers.update(zip(batch, texts, strict=True))
    return [answers[question] for question in questions]


def row(questions: Sequence[Question], answers: dict[str, list[str]], name: str) -> dict[str, Any]:
    """Accuracy of one way, and its agreement with float32."""
    right = score([is_correct(given, q.answer) for given, q in zip(answers[name], questions, strict=True)])
    same = sum(a == b for a, b in zip(answers[name], answers[PRECISIONS[0]], strict=True))
    return {
        "accuracy": round(right.accuracy, 4),
        "interval": [round(end, 4) for end in right.interval],
        "agreement": round(same / len(questions), 4),
        "differing": len(questions) - same,
    }


def show(rows: dict[str, dict[str, Any]]) -> None:
    """A table for people."""
    print(f"{'':>10}  accuracy  95 % interval     agreement  bytes an image")
    for name, one in rows.items():
        low, high = one["interval"]
        size = one["bytes_per_image"] or ""
        print(f"{name:>10}  {one['accuracy']:.4f}    {low:.4f} to {high:.4f}  {one['agreement']:.4f}     {size}")


if __name__ == "__main__":
    main()
