"""Write what the shipped model is compared with: `src/vlora/nano/compared.json`.

    python scripts/compared.py [--static-lora runs/static-lora/final] [--limit 100]
                               [--visual-tokens runs/visual-tokens/final] [--weights runs/weights/final]

What is not given keeps the scores that it has. A static LoRA does not look, so it is asked without pictures, which
answers each question once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.progress import Progress

import vlora
from vlora.evaluate.answerers import load_baseline, of_baseline, of_eyes, tokens_of
from vlora.evaluate.nano_suite import TARGETS, Answerer, evaluate
from vlora.evaluate.predict import Asked
from vlora.nano import compared

TARGET = Path(compared.__file__).with_name("compared.json")


def main() -> None:
    """Ask those that are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--static-lora", type=Path)
    parser.add_argument("--visual-tokens", type=Path)
    parser.add_argument("--weights", type=Path, help="trained in the same steps as those of visual tokens")
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    facts: dict[str, Any] = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.is_file() else {}
    if arguments.static_lora:
        eyes = vlora.load(arguments.static_lora, device="cpu")
        facts["static-lora"] = scores(arguments.static_lora, blind(of_eyes(eyes)), eyes.processor, arguments.limit)
    if arguments.visual_tokens:
        model, processor = load_baseline(arguments.visual_tokens, "cpu")
        answers = of_baseline(model, processor)
        facts["visual-tokens"] = scores(arguments.visual_tokens, answers, processor, arguments.limit)
    if arguments.weights:
        eyes = vlora.load(arguments.weights, device="cpu")
        facts["weights"] = scores(arguments.weights, of_eyes(eyes), eyes.processor, arguments.limit)
    TARGET.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def blind(answers: Answerer) -> Answerer:
    """The same model, asked without pictures."""

    def asked_blindly(asked: Sequence[Asked], tokens: int, tell: Callable[[int], None]) -> list[str]:
        return answers([Asked(None, one.question) for one in asked], tokens, tell)

    return asked_blindly


def scores(folder: Path, answers: Answerer, processor: Any, limit: int | None) -> dict[str, Any]:
    """The score of each task, and how the model was trained."""
    with Progress() as bar:
        row = bar.add_task(folder.parent.name)
        result = evaluate(
            answers,
            model=folder.parent.name,
            tokens=tokens_of(processor),
            tasks=tuple(TARGETS),
            limit=limit,
            controls=(),
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        )
    tasks = {task: {k: v for k, v in part.items() if k != "target"} for task, part in result.to_dict()["tasks"].items()}
    train = yaml.safe_load((folder.parent / "config.yaml").read_text(encoding="utf-8"))["train"]
    last = json.loads((folder.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    asked = sum(part["n"] for part in tasks.values())
    about = {"steps": train["steps"], "images_per_step": train["images_per_step"], "loss": round(last["loss"], 4)}
    about |= {"questions": asked, "answers_per_second": round(asked / result.seconds, 1)}
    return {"trained": about, "tasks": tasks}


if __name__ == "__main__":
    main()
