"""Run folders as training leaves them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml


def write_run(
    folder: Path,
    losses: Sequence[float],
    *,
    name: str = "nano",
    paradigm: str | None = "weights",
    every: int = 10,
    batch: int = 16,
    rate: float = 40.0,
    tail: str = "",
) -> Path:
    """A run with a line every so many steps, at so many samples a second."""
    folder.mkdir(parents=True)
    config = {"name": name} | ({} if paradigm is None else {"paradigm": paradigm})
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    lines = [
        {
            "step": step,
            "loss": loss,
            "learning_rate": 1e-3,
            "grad_norm": 0.5,
            "samples": step * batch,
            "seconds": round(step * batch / rate, 3),
            "images_per_second": rate,
            "questions_per_second": rate,
            "text_tokens_per_second": 20 * rate,
        }
        for step, loss in zip(range(every, every * len(losses) + 1, every), losses, strict=True)
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines) + tail
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder
