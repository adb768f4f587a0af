"""Write what the shipped model is compared with: `src/vlora/nano/compared.json`.

    python scripts/compared.py --static-lora runs/static-lora/final
    python scripts/compared.py --visual-tokens runs/visual-tokens/final --weights runs/weights/final --limit 100

Those that are given are asked in turns, task by task, and what is not given keeps the scores that it has. A static LoRA
does not look, so it is asked without pictures, which answers each question once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track

import vlora
from vlora.compare.runs import CONFIG, read_run
from vlora.cost import cost
from vlora.data.prompts import supervised
from vlora.evaluate.answerers import load_baseline, of_baseline, of_eyes, tokens_of
from vlora.evaluate.nano_suite import TARGETS, Answerer, Item, evaluate
from vlora.evaluate.predict import Asked
from vlora.model.loss import IGNORED
from vlora.nano import compared
from vlora.train.config import load_config

TARGET = Path(compared.__file__).with_name("compared.json")


@dataclass
class Model:
    """One that is asked, and what it scored so far."""

    name: str
    folder: Path
    answers: Answerer
    processor: Any
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def ask(self, task: str, limit: int | None) -> list[Item]:
        """Score one task, and take the time; says what was asked."""
        began = time.perf_counter()
        result = evaluate(
            self.answers, model=self.name, tokens=tokens_of(self.processor), tasks=(task,), limit=limit, controls=()
        )
        facts = result.to_dict()["tasks"][task]
        del facts["target"]
        self.tasks[task] = facts | {"seconds_per_answer": round((time.perf_counter() - began) / facts["n"], 4)}
        return [row.item for row in result.rows]

    def trained(self) -> dict[str, Any]:
        """How it became what it is: its run's folder says."""
        run, train = read_run(self.folder.parent), load_config(self.folder.parent / CONFIG).train
        return {
            "steps": int(run.steps[-1]),
            "images_per_step": train.images_per_step,
            "optimizer": train.optimizer,
            "learning_rate": train.learning_rate,
            "loss": round(run.smooth[-1], 4),
        }


def main() -> None:
    """Ask those that are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--static-lora", type=Path)
    parser.add_argument("--visual-tokens", type=Path)
    parser.add_argument("--weights", type=Path, help="trained in the same steps as those of visual tokens")
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    models = list(given(arguments))
    for task in track(TARGETS, description="tasks"):
        own = [model.ask(task, arguments.limit) for model in models][-1]
        if arguments.weights:
            prefills = prefill(models[-1].processor, own)
            for model in models:
                if model.name in prefills:
                    model.tasks[task]["prefill_flops"] = prefills[model.name]
    facts: dict[str, Any] = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.is_file() else {}
    facts |= {model.name: {"trained": model.trained(), "tasks": model.tasks} for model in models}
    TARGET.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def given(arguments: argparse.Namespace) -> Iterator[Model]:
    """The models that the command names."""
    if arguments.static_lora:
        eyes = vlora.load(arguments.static_lora, device="cpu", views=1)
        yield Model("static-lora", arguments.static_lora, blind(of_eyes(eyes)), eyes.processor)
    if arguments.visual_tokens:
        model, processor = load_baseline(arguments.visual_tokens, "cpu")
        yield Model("visual-tokens", arguments.visual_tokens, of_baseline(model, processor), processor)
    if arguments.weights:
        eyes = vlora.load(arguments.weights, device="cpu", views=1)
        yield Model("weights", arguments.weights, of_eyes(eyes), eyes.processor)


def blind(answers: Answerer) -> Answerer:
    """The same model, asked without pictures."""

    def asked_blindly(asked: Sequence[Asked], tokens: int, tell: Callable[[int], None]) -> list[str]:
        return answers([Asked(None, one.question) for one in asked], tokens, tell)

    return asked_blindly


def prefill(processor: Any, own: Sequence[Item]) -> dict[str, int]:
    """FLOPs of the prefill of a mean question of a task: wearing the image, and with its tokens before it."""
    lengths = [supervised(item.question, item.answer, processor)[1].count(IGNORED) for item in own]
    bill = cost(model="nano", text_tokens=round(sum(lengths) / len(lengths)), logits="needed")
    return {"weights": bill.vlora.prefill, "visual-tokens": bill.visual_tokens.prefill}


if __name__ == "__main__":
    main()
