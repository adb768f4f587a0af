"""Watching a run: what it tells while it goes, and what it leaves written.

metrics.jsonl        a line every `log_steps`: loss, rate, norm, samples, seconds, throughput
ids-RANK.jsonl       with `train.log_ids`: the ids of each step, a file a process
broken-RANK.jsonl    looks that were left out, because an image of theirs cannot be decoded

A run that goes on from a checkpoint drops the lines of steps that are done again, so that each file tells one story.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import is_initialized
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import DataError, VLoRAError
from .looks import Seen

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Progress:
    """Where a run stands; rates are since this process began.

    Attributes:
        step: optimiser steps done.
        steps: optimiser steps in all.
        loss: mean since the last report, nats per token of an answer.
        images_per_second: looked at.
        questions_per_second: rows of text, those without an image too.
        text_tokens_per_second: padding not counted.
        seconds_left: at that rate.
    """

    step: int
    steps: int
    loss: float
    images_per_second: float
    questions_per_second: float
    text_tokens_per_second: float
    seconds_left: float


@dataclass
class _Counts:
    """Sums of what one process, or all of them, have read."""

    images: int = 0
    rows: int = 0
    tokens: int = 0
    broken: int = 0

    def add(self, seen: Seen) -> None:
        self.images += seen.images
        self.rows += seen.rows
        self.tokens += seen.tokens
        self.broken += len(seen.broken)


class Watch(TrainerCallback):
    """Writes the logs, reports progress, and stops a run with too many broken images.

    Args:
        folder: of the run.
        rank: of this process; the first one writes the metrics.
        looks_before: looks of all steps before one.
        max_broken: one more broken image, over all processes, stops the run.
        log_ids: keep the ids of every step.
        report: told at every log step, on the first process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        looks_before: Callable[[int], int],
        max_broken: int,
        log_ids: bool,
        report: Callable[[Progress], None] | None = None,
    ) -> None:
        self.folder, self.rank, self.looks_before = folder, rank, looks_before
        self.max_broken, self.log_ids, self.report = max_broken, log_ids, report
        self.counts = _Counts()
        self.step = 0
        self.began, self.first_step, self.seconds_before, self.broken_before = time.monotonic(), 0, 0.0, 0

    def seen(self, seen: Seen) -> None:
        """Take note of a micro-batch of the step that is about to be done."""
        self.counts.add(seen)
        if self.log_ids:
            self._append(f"ids-{self.rank}.jsonl", {"step": self.step + 1, "ids": seen.ids})
        for broken in seen.broken:
            self._append(f"broken-{self.rank}.jsonl", {"step": self.step + 1, **asdict(broken)})

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock, and drop what is told of steps that are done again."""
        self.step = self.first_step = state.global_step
        if self.rank == 0:
            for path in [self.folder / METRICS, *self.folder.glob("ids-*.jsonl"), *self.folder.glob("broken-*.jsonl")]:
                _cut(path, state.global_step)
        if is_initialized():
            torch.distributed.barrier()
        last = list(_lines(self.folder / METRICS))[-1:]
        self.seconds_before = float(last[0].get("seconds", 0.0)) if last else 0.0
        self.broken_before = sum(1 for path in self.folder.glob("broken-*.jsonl") for _ in _lines(path))
        self.began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count the steps."""
        self.step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One line, one report; every process comes by.

        Raises:
            DataError: too many broken images.
        """
        if not logs or "loss" not in logs:
            return
        counts = _summed(self.counts, args.device)
        self._check_broken(counts.broken + self.broken_before)
        if self.rank:
            return
        seconds = max(time.monotonic() - self.began, 1e-9)
        steps_left = state.max_steps - state.global_step
        progress = Progress(
            step=state.global_step,
            steps=state.max_steps,
            loss=logs["loss"],
            images_per_second=counts.images / seconds,
            questions_per_second=counts.rows / seconds,
            text_tokens_per_second=counts.tokens / seconds,
            seconds_left=steps_left * seconds / max(1, state.global_step - self.first_step),
        )
        line = {
            "step": progress.step,
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "samples": self.looks_before(progress.step),
            "seconds": round(self.seconds_before + seconds, 3),
            "images_per_second": round(progress.images_per_second, 2),
            "questions_per_second": round(progress.questions_per_second, 2),
            "text_tokens_per_second": round(progress.text_tokens_per_second, 1),
            "broken": counts.broken + self.broken_before,
        }
        rates = asdict(progress)
        logs.update({name: rates[name] for name in rates if name.endswith("per_second")})  # for the other reporters
        self._append(METRICS, line)
        if self.report:
            self.report(progress)

    def _check_broken(self, broken: int) -> None:
        if broken > self.max_broken:
            raise DataError(
                f"{broken} images are broken, where data.max_broken allows {self.max_broken}; they are listed in "
                f"{self.folder}/broken-*.jsonl: mend them, or raise data.max_broken and go on with --resume auto."
            )

    def _append(self, name: str, line: dict[str, Any]) -> None:
        try:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise VLoRAError(
                f"{self.folder / name} cannot be written ({error.strerror}); the checkpoints are whole: make room, and "
                "go on with --resume auto."
            ) from error


def _summed(counts: _Counts, device: torch.device) -> _Counts:
    """Over all processes."""
    if not is_initialized():
        return counts
    values = torch.tensor(list(asdict(counts).values()), dtype=torch.int64, device=device)
    torch.distributed.all_reduce(values)
    return _Counts(*values.tolist())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log; the last one of a killed run may be cut off."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _cut(path: Path, step: int) -> None:
    """Drop the lines after a step."""
    if path.is_file():
        kept = [line for line in _lines(path) if line.get("step", math.inf) <= step]
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        fresh.replace(path)
