"""Who is asked: a model that wears images, or one that reads visual tokens, in one form."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..api import Eyes
from ..compare.answer import answer
from ..errors import CheckpointError
from ..model import VisualParameters
from .nano_suite import Answerer
from .predict import Asked, Shown, opened, predict


def of_eyes(eyes: Eyes, *, batch_size: int = 64) -> Answerer:
    """A model that wears images; it looks at each image once, however often it is asked."""
    seen: dict[Shown, VisualParameters] = {}

    def answers(asked: Sequence[Asked], tokens: int, tell: Callable[[int], None]) -> list[str]:
        return predict(
            eyes,
            asked,
            batch_size=batch_size,
            max_new_tokens=tokens,
            seen=seen,
            progress=lambda done, _total: tell(done),
        )

    return answers


def of_baseline(model: Any, processor: Any, *, batch_size: int = 64) -> Answerer:
    """A visual-token model; questions of one length and one image are asked together."""

    def answers(asked: Sequence[Asked], tokens: int, tell: Callable[[int], None]) -> list[str]:
        order = sorted(set(asked), key=lambda one: (len(one.question), str(one.image)))
        found: dict[Asked, str] = {}
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            pictures = {one.image: opened(one.image) for one in part if one.image is not None}
            images = [None if one.image is None else pictures[one.image] for one in part]
            texts = answer(model, processor, images, [one.question for one in part], tokens, batch_size=batch_size)
            found |= dict(zip(part, texts, strict=True))
            tell(len(asked) * (start + len(part)) // len(order))
        return [found[one] for one in asked]

    return answers


def tokens_of(processor: Any) -> Callable[[str], int]:
    """How many tokens an answer has."""
    return lambda answer: len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])


def is_baseline(folder: str | Path) -> bool:
    """Whether a folder holds a visual-token model."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "llava"


def load_baseline(folder: str | Path, device: str | None = None) -> tuple[Any, Any]:
    """A visual-token model of `compare.baseline.save_baseline`, and its processor.

    Raises:
        CheckpointError: the folder cannot be loaded.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"The visual-token model in {folder} cannot be loaded: {reason}") from error
    return model.to(target).eval(), processor
