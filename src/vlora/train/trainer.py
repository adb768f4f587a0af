"""transformers' Trainer, taught what is particular here.

data         the loader of `loader.py`, which knows its place by the number of the step; accelerate does not shard it
loss         at supervised positions only; not finite on any process, it stops all of them before weights change
rates        by part: generator (and what of it writes into the language model), language model, vision encoder
checkpoints  those of `checkpoint.py`: whole or not there, for any number of processes
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import VLoRAError
from . import checkpoint
from .config import TrainSection
from .learner import Learner
from .loader import first_failure
from .looks import Seen
from .muon import Muon


class StepTrainer(Trainer):
    """Trains what a learner says.

    Args:
        learner: the model, and which parts of it learn.
        section: of the config.
        batches: makes the loader, for the step (counted from 0) that the run begins or goes on at.
        seen: told what each micro-batch is made of.
        **kwargs: for `Trainer`.
    """

    def __init__(
        self,
        *,
        learner: Learner,
        section: TrainSection,
        batches: Callable[[int], DataLoader[Any]],
        seen: Callable[[Seen], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(model=learner.model, **kwargs)
        self.learner, self.section, self.batches, self.seen = learner, section, batches, seen
        # Our loss is scaled already; the Trainer must divide it by the micro-batches of a step.
        self.model_accepts_loss_kwargs = False
        self.first_step = 0
        self.stop_wanted = False
        self.wishes: list[Callable[[], bool]] = []
        self.stopped = False
        self._step: list[Seen] = []

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Gradients lie in the buckets that DDP sends, not beside them: a copy less of all that learns."""
        args = super()._build_accelerator_args(**kwargs)
        for handler in args.get("kwargs_handlers", []):
            if hasattr(handler, "gradient_as_bucket_view"):
                handler.gradient_as_bucket_view = True
        return args

    # ---- data -----------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader, from the step on that the run goes on at."""
        return self.batches(self.first_step)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The micro-batches of one step; what a worker could not use is raised here."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        first_failure(samples)
        self._step = [sample.pop("seen") for sample in samples]
        for seen in self._step:
            self.seen(seen)
        return samples, None

    # ---- loss -----------------------------------------------------------------------------------------

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, Any]:
        """Logits at supervised positions only."""
        outputs = model(**inputs, supervised_only=True, use_cache=False)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        self._agree(norm)
        return norm

    def _agree(self, norm: Any) -> None:
        """Look, once a step and on all processes, whether the gradients can be used and whether someone wants to stop.

        Raises:
            VLoRAError: loss or gradients are not finite; nothing has been changed by them.
        """
        value = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        finite = torch.as_tensor(value, device=self.args.device).isfinite() & self._tr_loss.isfinite()
        stop = self.stop_wanted or any(wish() for wish in self.wishes)
        flags = torch.stack([(~finite).float(), torch.full_like(finite, stop, dtype=torch.float32)])
        if is_initialized():
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        broken, stopped = flags.tolist()
        self.stopped = bool(stopped)
        if broken:
            raise VLoRAError(self._not_finite())

    def _not_finite(self) -> str:
        ids = [name for seen in self._step for name in seen.ids]
        if is_initialized():
            of_all: list[list[str]] = [[] for _ in range(self.args.world_size)]
            torch.distributed.all_gather_object(of_all, ids)
            ids = [name for own in of_all for name in own]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        return (
            f"The loss is not finite at step {self.state.global_step + 1}, whose looks are {shown}: lower "
            "train.learning_rate, or look at these samples, and go on from the last checkpoint with --resume auto."
        )

    # ---- optimiser ------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW or Muon with a rate for each part; matrices with decay, the rest without."""
        if self.optimizer is None:  # pyright: ignore[reportUnnecessaryComparison]
            # In one kernel, also on a CPU, where the update of 12 M numbers takes a quarter of the time.
            kind = Muon if self.section.optimizer == "muon" else partial(torch.optim.AdamW, fused=True)
            self.optimizer = kind(self.learner.groups(self.section), betas=self.section.betas)
        return self.optimizer

    # ---- the end --------------------------------------------------------------------------------------

    def finish(self, folder: Path) -> Path:
        """Write the final model, on the first process."""
        state: Any = self.accelerator.get_state_dict(self.model_wrapped) if self.is_fsdp_enabled else None
        if self.args.should_save:
            with checkpoint.one_sentence(self._run):
                self.learner.finish(folder, state)
        self.accelerator.wait_for_everyone()
        return folder

    # ---- checkpoints ----------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._partial)

    @property
    def _run(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def _partial(self) -> Path:
        """Where a checkpoint is written before it is whole."""
        return self._run / checkpoint.PARTIAL

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with checkpoint.one_sentence(self._run):
            if self.args.should_save:
                shutil.rmtree(self._partial, ignore_errors=True)
                (self._partial / name).mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                keep = self.section.keep_checkpoints
                checkpoint.finish(self._partial / name, self._run / name, step=self.state.global_step, keep=keep)
            self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing: the state holds what learns, and the final model is written at the end of the run."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        checkpoint.save_state(Path(output_dir), *self._learning())
        if self.args.should_save:
            scheduler: Any = self.lr_scheduler
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        _load_state(Path(checkpoint), *self._learning())
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        # The rates of the next step as this run's schedule has them: the saved ones are those of a run that may have
        # been planned to be shorter.
        rates = zip(self.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        for group, base, factor in rates:
            group["lr"] = base * factor(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _learning(self) -> tuple[Any, torch.optim.Optimizer]:
        """The model in whatever distributes it, and the optimiser without."""
        return self.model_wrapped, getattr(self.optimizer, "optimizer", self.optimizer)


class StopWhenAsked(TrainerCallback):
    """Ends the run, with a checkpoint, after the step in which one of the processes was asked to stop."""

    def __init__(self, trainer: StepTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer.stopped:
            control.should_training_stop = control.should_save = True


_load_state = checkpoint.load_state  # a method's argument of the Trainer has the module's name


def arguments(section: TrainSection, folder: Path, **more: Any) -> TrainingArguments:
    """The Trainer's arguments of a config.

    Args:
        section: of the config.
        folder: of the run.
        **more: steps, warm-up, accumulation, and what depends on the machine.
    """
    steps, warmup = more["max_steps"], more["warmup_steps"]
    schedule: dict[str, Any] = {"lr_scheduler_type": "cosine"}
    if section.schedule == "constant":
        # Constant, then down: a run can be made longer or shorter while it is under way (`train.steps` is free).
        decay = max(0, min(section.decay_steps, steps - warmup))
        schedule = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": decay}}
    return TrainingArguments(
        output_dir=str(folder),
        learning_rate=section.learning_rate,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        seed=section.seed,
        logging_steps=section.log_steps,
        logging_nan_inf_filter=False,  # it would wait for the device in every micro-batch; `_agree` looks once a step
        save_steps=section.save_steps,
        ignore_data_skip=True,  # the loader begins where the run goes on
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cache=True,  # the Trainer writes it into the config, which is saved; the training step itself uses none
        report_to=list(section.report_to),
        **schedule,
        **more,
    )
