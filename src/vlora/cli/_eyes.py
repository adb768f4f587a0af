"""What commands with a model share: its options, loading it, and one timed answer."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ._output import note

if TYPE_CHECKING:
    from PIL import Image

    from ..api import Eyes

Model = Annotated[str, typer.Option(help="nano, a folder with a checkpoint, or a hub id.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; a GPU if there is one.")]
Views = Annotated[
    int | None, typer.Option(min=1, help="Look at an image so many times; default: as often as the model does.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")


@dataclass(frozen=True)
class Answer:
    """An answer, what it cost, and how long it took."""

    text: str
    text_tokens: int
    visual_parameters_bytes: int
    encode_ms: float
    answer_ms: float


def load_eyes(model: str, device: str | None, views: int | None = None) -> tuple[Eyes, float]:
    """Load a model, and tell how long it took, in milliseconds.

    Raises:
        InputError: no such device, or more views than the model has.
        VLoRAError: as `vlora.load`.
    """
    if device is not None and not _DEVICE.fullmatch(device):
        raise InputError(f"There is no device {device!r}: give cpu, cuda, mps or xpu, or one of several as cuda:1.")
    started = time.perf_counter()
    from transformers.utils import logging as transformers_logging

    from ..loading import load

    transformers_logging.disable_progress_bar()
    if device is not None:
        _check_device(device)
    if model == "nano":
        _prepare_nano()
    eyes = load(model, device=device, views=views)
    return eyes, milliseconds(started)


def _check_device(device: str) -> None:
    """Try a device before half a gigabyte is loaded for it."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"The device {device!r} cannot be used here: leave --device out, or give cpu.") from error


def _prepare_nano() -> None:
    """Convert nano's language model if this has not been done, and say so: it takes half a minute."""
    from ..nano import parts

    if (Path(parts.__file__).parent / "parts.json").is_file():
        parts.language_model_folder(note)


def timed_answer(eyes: Eyes, pictures: Sequence[Image.Image], question: str, max_new_tokens: int) -> Answer:
    """Look at images and answer a question about them."""
    started = time.perf_counter()
    seen = eyes.perceive(pictures)
    values = seen.values.flatten()[:1].tolist()  # waits for a GPU
    encode_ms = milliseconds(started)
    del values
    started = time.perf_counter()
    text = eyes.ask(seen, question, max_new_tokens=max_new_tokens)
    answer_ms = milliseconds(started)
    tokens = int(eyes.tokens([question], [len(pictures)])["input_ids"].shape[1])
    return Answer(text, tokens, seen.nbytes, encode_ms, answer_ms)


def milliseconds(started: float) -> float:
    """Milliseconds since `started`, to a tenth."""
    return round((time.perf_counter() - started) * 1000, 1)
