"""What the shipped model is compared with: models that do not ship, by what they scored on the same suite.

    compared.json    of each, how it was trained, and of each task its score

static-lora      a LoRA of the same targets, layers and rank, trained on the same texts without their pictures: what can
                 be had without looking
visual-tokens    the same encoder and language model, joined by visual tokens (LLaVA's projector), trained on the same
                 data
weights          the model that ships, trained anew in the same steps as that of visual tokens
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES = ("static-lora", "visual-tokens", "weights")


def compared(facts: dict[str, Any]) -> dict[str, Any]:
    """The result of the suite with the others' scores beside those of each task."""
    others = json.loads((Path(__file__).parent / "compared.json").read_text(encoding="utf-8"))
    known = [name for name in NAMES if name in others]
    tasks = {
        task: part | {name: others[name]["tasks"][task] for name in known if task in others[name]["tasks"]}
        for task, part in facts["tasks"].items()
    }
    return {**facts, "tasks": tasks, "compared_with": {name: others[name]["trained"] for name in known}}
