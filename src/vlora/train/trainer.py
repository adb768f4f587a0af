"""transformers' Trainer, taught three things: only the generator is saved, rates differ by part, progress is told."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import VLoRAError
from ..model.assemble import GENERATOR_FILE

COMPLETE = "complete.json"  # written last: a checkpoint without it was cut off


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        steps: optimiser steps in all.
        loss: mean since the last report, nats per answer.
        images_per_second: since this process began.
        questions_per_second: likewise.
        seconds_left: at that rate.
    """

    step: int
    steps: int
    loss: float
    images_per_second: float
    questions_per_second: float
    seconds_left: float


class GeneratorTrainer(Trainer):
    """Trains the generator of a model whose other parts are frozen.

    Args:
        output_rate: learning rate of B, scales and static factors over that of the rest.
        **kwargs: for `Trainer`.
    """

    def __init__(self, *, output_rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.output_rate = output_rate
        # Our loss is a mean already; the Trainer must divide it when it accumulates gradients.
        self.model_accepts_loss_kwargs = False

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """Mean over answers, logits at supervised positions only."""
        outputs = model(**inputs, supervised_only=True, use_cache=False)
        if not math.isfinite(outputs.loss.item()):
            raise VLoRAError(
                f"The loss is not finite at step {self.state.global_step + 1}: lower train.learning_rate, "
                "or go on from the last checkpoint with another train.seed."
            )
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW in three groups: matrices with decay, the rest without, and what writes into the language model."""
        if self.optimizer is None:  # pyright: ignore[reportUnnecessaryComparison]
            self.optimizer = torch.optim.AdamW(_groups(self.model, self.args, self.output_rate), betas=(0.9, 0.98))
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Any:
        return SequentialSampler(train_dataset or self.train_dataset)  # type: ignore[arg-type]  # the plan is shuffled

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous() for name, tensor in _generator(self.model).state_dict().items()}
        save_file(state, folder / GENERATOR_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        _generator(self.model).load_state_dict(load_file(Path(resume_from_checkpoint) / GENERATOR_FILE))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        (folder / COMPLETE).write_text(json.dumps({"step": self.state.global_step}) + "\n", encoding="utf-8")


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def _generator(model: Any) -> nn.Module:
    return model.model.generator


def _groups(model: Any, args: TrainingArguments, output_rate: float) -> list[dict[str, Any]]:
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    output: list[nn.Parameter] = []
    for name, parameter in _generator(model).named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith(("b.", "static_a.", "scales")):
            output.append(parameter)
        elif parameter.ndim < 2 or name.endswith("queries") or name == "positions":
            plain.append(parameter)
        else:
            decayed.append(parameter)
    rate = args.learning_rate
    return [
        {"params": decayed, "lr": rate, "weight_decay": args.weight_decay},
        {"params": plain, "lr": rate, "weight_decay": 0.0},
        {"params": output, "lr": rate * output_rate, "weight_decay": 0.0},
    ]


class Tell(TrainerCallback):
    """Writes `metrics.jsonl` and reports progress.

    Args:
        path: of the log; on resumption, lines after the checkpoint's step are dropped.
        images: looks per step.
        questions: questions per look.
        report: told at every log step.
    """

    def __init__(
        self, path: Path, *, images: int, questions: int, report: Callable[[Progress], None] | None = None
    ) -> None:
        self.path, self.images, self.questions, self.report = path, images, questions, report
        self.began, self.first_step = time.monotonic(), 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock, and drop what a cut-off run logged after its last checkpoint."""
        self.began, self.first_step = time.monotonic(), state.global_step
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= state.global_step]
            self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One line, one report."""
        if not logs or "loss" not in logs:
            return
        seconds = max(time.monotonic() - self.began, 1e-9)
        rate = (state.global_step - self.first_step) / seconds
        line = {
            "step": state.global_step,
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "images_per_second": round(rate * self.images, 2),
            "questions_per_second": round(rate * self.images * self.questions, 2),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.report:
            left = (state.max_steps - state.global_step) / rate if rate else math.inf
            self.report(
                Progress(
                    step=state.global_step,
                    steps=state.max_steps,
                    loss=logs["loss"],
                    images_per_second=rate * self.images,
                    questions_per_second=rate * self.images * self.questions,
                    seconds_left=left,
                )
            )


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be cut off
        return math.inf
