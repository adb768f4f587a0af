"""What each choice of nano is worth: the small counterpart of the paper's tables 3 (weights), 4 (rank) and 5 (blocks).

    python benchmarks/training/ablation.py [--steps 100] [--images 16] [--seeds 0] [--only NAME ...]    two CPU cores
    vlora data fetch nano && python benchmarks/training/ablation.py \
        --config configs/nano.yaml --tasks scenes/colour emoji/name digits/read --steps 300 --images 256   a GPU

Every row is the config with some fields changed, trained for the same steps on the same pictures in the same order, and
asked as the nano suite asks. A row that `--into` holds already, with the same config, steps, images and seed, is not
trained again, so an interrupted table goes on where it was. The loss is the mean over the last fifth of the steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

import vlora
from vlora.compare.runs import read_run
from vlora.evaluate.answerers import is_baseline, load_baseline, of_baseline, of_eyes, tokens_of
from vlora.evaluate.nano_suite import TARGETS, evaluate
from vlora.evaluate.scoring import wilson
from vlora.train.config import load_config
from vlora.train.run import train

G = "model.generator."
TOKENS = ("paradigm=visual-tokens", "data.max_text_tokens=127")
"""A text holds 99 tokens more than its 28: of an image 100 (64 at 128 pixels) in place of one."""

ROWS: dict[str, tuple[str, ...]] = {
    "nano": (),
    # weight types (table 3)
    "q": (f"{G}targets=[q]",),
    "v": (f"{G}targets=[v]",),
    "o": (f"{G}targets=[o]",),
    "q k v o": (f"{G}targets=[q, k, v, o]",),
    "gate up": (f"{G}targets=[gate, up]",),
    "down": (f"{G}targets=[down]",),
    "mlp": (f"{G}targets=[mlp]",),
    "q k v o mlp": (f"{G}targets=[q, k, v, o, mlp]",),
    # rank (table 4)
    "rank 4": (f"{G}rank=4", f"{G}alpha=4"),
    "rank 8": (f"{G}rank=8", f"{G}alpha=8"),
    "rank 32": (f"{G}rank=32", f"{G}alpha=32"),
    # blocks of the trunk (table 5)
    "1 block": (f"{G}depth=1",),
    "4 blocks": (f"{G}depth=4",),
    # layers that wear
    "every 4th layer": (f"{G}layers=[0, 4, 8, 12, 16, 20, 24, 28]",),
    "all from 10 on": (f"{G}layers={list(range(10, 30))}",),
    "the last 12": (f"{G}layers={list(range(18, 30))}",),
    # head, factors, and what is ours beside the paper's form
    "dictionary, 64 atoms, rank 64": (
        f"{G}head=dictionary", f"{G}dictionary_size=64", f"{G}rank=64", f"{G}alpha=64",
    ),
    "dictionary, both factors, rank 32": (
        f"{G}head=dictionary", f"{G}dictionary_size=64", f"{G}rank=32", f"{G}alpha=32", f"{G}factors=ab",
    ),
    "B, v o down, rank 24": (f"{G}factors=b", f"{G}targets=[v, o, down]", f"{G}rank=24", f"{G}alpha=24"),
    "without norms": (f"{G}norms=false",),
    "scaled trunk": (f"{G}trunk_init=scaled",),
    "separate trunks": (f"{G}queries=separate",),
    "static rank 16": (f"{G}static_rank=16",),
    "one question an image": ("data.questions_per_image=1",),
    "160 pixels": ("model.vision_options={variant: lite0, image_size: 160, stages: [3, 5, 7], stride: 16}",),
    "the paper's form": (
        f"{G}targets=[q, k, v, o, mlp]", f"{G}layers=[0, 4, 8, 12, 16, 20, 24, 28]", f"{G}norms=false",
        f"{G}queries=separate", "data.questions_per_image=1",
    ),
    "visual tokens": TOKENS,
    # rates
    "rate 5e-4": ("train.learning_rate=5e-4",),
    "rate 2e-3": ("train.learning_rate=2e-3",),
    "visual tokens, rate 3e-3": (*TOKENS, "train.learning_rate=3e-3"),
    "visual tokens, rate 1e-2": (*TOKENS, "train.learning_rate=1e-2"),
}  # fmt: skip
SAME = ("config", "steps", "images")
"""What rows of one table have in common."""


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/easy-vqa.yaml")
    parser.add_argument("--tasks", nargs="+", choices=list(TARGETS), default=["easy-vqa"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--items", type=int, default=1000, help="of each task")
    parser.add_argument("--only", nargs="+", choices=list(ROWS))
    parser.add_argument("--into", type=Path, default=Path("docs/results/ablation.jsonl"))
    arguments = parser.parse_args()
    for name, seed in track(list(missing(arguments)), description="training"):
        row = {"name": name, "seed": seed} | {field: getattr(arguments, field) for field in SAME}
        row |= measured(ROWS[name], arguments, seed)
        with arguments.into.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    show([row for row in rows_of(arguments.into) if belongs(row, arguments)], arguments.items)


def missing(arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Names and seeds that nobody has trained yet."""
    have = {(row["name"], row["seed"]) for row in rows_of(arguments.into) if belongs(row, arguments)}
    for seed in arguments.seeds:
        yield from ((name, seed) for name in arguments.only or ROWS if (name, seed) not in have)


def belongs(row: dict[str, Any], arguments: argparse.Namespace) -> bool:
    """Whether a row may stand in the same table."""
    return all(row[field] == getattr(arguments, field) for field in SAME)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What was measured before."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def measured(changes: tuple[str, ...], arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train one row, and ask it everything; texts a step are the same in every row."""
    steps, images = arguments.steps, arguments.images
    several = 4 if not any("questions_per_image" in change for change in changes) else 1
    settings = (
        f"train.steps={steps}", f"train.decay_steps={steps // 2}", f"train.warmup_steps={steps // 10}",
        f"train.images_per_step={images * 4 // several}", f"train.seed={seed}",
        f"train.log_steps={max(1, steps // 5)}", f"train.save_steps={steps}",
    )  # fmt: skip
    config = load_config(arguments.config, [*settings, *changes])
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        final = train(config, run_dir=folder)
        seconds = time.perf_counter() - began
        loss = read_run(folder).losses[-1]
        facts = asked(final, arguments)
    return {"loss": round(loss, 4), "seconds": round(seconds, 1)} | facts


def asked(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """How large what was trained is, and how often it is right."""
    if is_baseline(folder):
        model, processor = load_baseline(folder)
        answers, bridge = of_baseline(model, processor), model.model.multi_modal_projector
    else:
        eyes = vlora.load(folder, views=1)
        answers, processor, bridge = of_eyes(eyes), eyes.processor, eyes.model.model.generator
    result = evaluate(
        answers,
        model=folder.name,
        tokens=tokens_of(processor),
        tasks=arguments.tasks,
        limit=arguments.items,
        controls=(),
    )
    accuracy = {task: round(part["none"].accuracy, 4) for task, part in result.tasks.items()}
    return {"parameters": sum(p.numel() for p in bridge.parameters()), "accuracy": accuracy}


def show(rows: list[dict[str, Any]], asked: int) -> None:
    """The table, in the form of the docs; rows of several seeds each have a line."""
    tasks = list(rows[0]["accuracy"])
    print("| row | seed | parameters | s | loss | " + " | ".join(tasks) + " |")
    print("|" + "---|" * (5 + len(tasks)))
    for row in rows:
        numbers = " | ".join(f"{row['accuracy'][task]:.3f}" for task in tasks)
        print(
            f"| {row['name']} | {row['seed']} | {row['parameters'] / 1e6:.1f} M | {row['seconds']:.0f} | "
            f"{row['loss']:.3f} | {numbers} |"
        )
    low, high = wilson(int(0.8 * asked), asked)
    print(f"\nOne accuracy of 0.8 on {asked} items has the 95 % interval {low:.3f} to {high:.3f}.")


if __name__ == "__main__":
    main()
