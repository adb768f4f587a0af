"""A training run: from a config to a model, in a folder that says how it was made.

runs/nano/
  config.yaml          the resolved config
  environment.json     versions and device
  metrics.jsonl        a line per log step (`watch.py`)
  checkpoint-N/        what learns, optimiser, schedule, random numbers (`checkpoint.py`)
  final/               the model; `vlora ask --model runs/nano/final`

Every process of a run calls `train`: one alone, those of torchrun, the workers of Ray.
"""

from __future__ import annotations

import json
import math
import platform
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from filelock import FileLock, Timeout
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .. import __version__
from ..errors import InputError, VLoRAError
from ..model import register
from . import machine
from .checkpoint import COMPLETE, last_checkpoint, step_of
from .config import TrainConfig, load_config
from .learner import Learner, build
from .loader import MicroBatches, World, accumulation, loader, longest_text, looks_of, number_of_steps, steps_of
from .trainer import StepTrainer, StopWhenAsked, arguments
from .watch import Progress, Watch

# Fields that may differ between a run and its resumption.
FREE = (
    "data.max_broken",
    "data.workers",
    "train.steps",
    "train.epochs",
    "train.decay_steps",
    "train.images_per_device",
    "train.gradient_checkpointing",
    "train.parallel",
    "train.log_steps",
    "train.log_ids",
    "train.save_steps",
    "train.keep_checkpoints",
    "train.device",
    "train.stored_dtype",
    "train.report_to",
)

# Seconds that a run which goes on waits for its folder: the readers of a killed one, which hold it too, outlive it
# until they look for their parent.
PATIENCE = 20.0


class Interrupted(VLoRAError):
    """The run was asked to stop, and has saved itself."""


def train(
    config: TrainConfig,
    *,
    run_dir: str | Path | None = None,
    resume: str = "none",
    report: Callable[[Progress], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train a model.

    Args:
        config: the experiment.
        run_dir: default `runs/NAME`.
        resume: `none` starts afresh, `auto` goes on from the last whole checkpoint if there is one, and a path from
            that checkpoint.
        report: told how far it is, on the first process.
        callbacks: more of the Trainer's.
        stop: asked once a step, in every process; the run saves itself and ends after a step in which one says yes.

    Returns:
        The folder of the final model.

    Raises:
        InputError: a run folder in use, a checkpoint that does not exist or is of another config.
        DataError: samples that cannot be used, or too many broken images.
        Interrupted: Ctrl-C or SIGTERM; what was done is saved.
    """
    register()
    folder = Path(run_dir or Path("runs") / config.name)
    first = machine.rank() == 0
    with _alone(folder, patience=0 if resume == "none" else PATIENCE) if first else nullcontext():
        checkpoint = _checkpoint(folder, resume)
        if first:
            _prepare(folder, config, resuming=checkpoint is not None)
        set_seed(config.train.seed)
        device = machine.device_of(config)
        machine.check_reporters(config, folder)
        learner = build(config, device)
        if first:
            _write_environment(folder, device, learner)
        trainer = _trainer(config, folder, device, learner, report)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.first_step = step_of(checkpoint) if checkpoint else 0
        trainer.wishes.append(stop)
        with _stoppable(trainer):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.state.global_step < trainer.args.max_steps:
            raise Interrupted(
                f"stopped after step {trainer.state.global_step} of {trainer.args.max_steps}, which is saved: "
                f"go on with --resume auto."
            )
        return trainer.finish(folder / "final")


def _trainer(
    config: TrainConfig,
    folder: Path,
    device: torch.device,
    learner: Learner,
    report: Callable[[Progress], None] | None,
) -> StepTrainer:
    section, processes = config.train, machine.processes()
    world = World(processes, machine.rank(), accumulation(config, processes))
    looks = looks_of(config, learner)
    steps = steps_of(config, looks)
    last = number_of_steps(config, steps)
    micro_batch = math.ceil(section.images_per_step / (processes * world.accumulation))
    sizes = learner.model.config if learner.parts else None
    if machine.recomputes(config, device, micro_batch=micro_batch, tokens=longest_text(steps, looks), model=sizes):
        learner.checkpoint_gradients()

    def batches(first: int) -> Any:
        micro = MicroBatches(steps, first=first, last=last, world=world)
        return loader(looks, micro, learner.collator(), workers=config.data.workers, device=device)

    watch = Watch(
        folder,
        rank=world.process,
        looks_before=steps.looks_before,
        max_broken=config.data.max_broken,
        log_ids=section.log_ids,
        report=report,
    )
    warmup = math.ceil(section.warmup_ratio * last) if section.warmup_steps is None else section.warmup_steps
    trainer = StepTrainer(
        learner=learner,
        section=section,
        batches=batches,
        seen=watch.seen,
        args=arguments(
            section,
            folder,
            run_name=config.name,
            max_steps=last,
            warmup_steps=min(warmup, last),
            gradient_accumulation_steps=world.accumulation,
            per_device_train_batch_size=micro_batch,
            **machine.trainer_options(config, device, learner.blocks()),
        ),
    )
    trainer.callback_handler.callbacks.insert(0, watch)  # before other reporters, to which it hands its rates
    trainer.add_callback(StopWhenAsked(trainer))
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


@contextmanager
def _stoppable(trainer: StepTrainer) -> Generator[None]:
    """Ctrl-C and SIGTERM end the run after the step it is in; a second Ctrl-C ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def wish(number: int, _frame: Any) -> None:
        if trainer.stop_wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        trainer.stop_wanted = True

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _alone(folder: Path, *, patience: float) -> Generator[None]:
    """Hold the run folder, so that no second run writes into it; the system lets go of it when a process dies."""
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=patience)
        except Timeout as error:
            raise InputError(
                f"The run folder {folder} is in use by another process: wait for it, or give another --run-dir."
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writable(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise VLoRAError(
            f"The run folder {folder} cannot be written ({error.strerror}): give another --run-dir."
        ) from error


def _checkpoint(folder: Path, resume: str) -> Path | None:
    if resume == "none":
        if any(folder.glob("checkpoint-*")) or (folder / "final").exists():
            raise InputError(
                f"The run folder {folder} holds a run: go on with --resume auto, or give another --run-dir."
            )
        return None
    if resume == "auto":
        return last_checkpoint(folder)
    path = Path(resume)
    if not (path / COMPLETE).is_file():
        raise InputError(f"There is no whole checkpoint {resume!r}: give auto, none, or a folder checkpoint-N.")
    return path


def _prepare(folder: Path, config: TrainConfig, *, resuming: bool) -> None:
    path = folder / "config.yaml"
    wanted = config.model_dump(mode="json")
    if resuming and path.is_file():
        # Read by today's rules: a field that is newer than the run has its default there.
        before = load_config(path).model_dump(mode="json")
        changed = [f for f in _differences(before, wanted) if f not in FREE]
        if changed:
            raise InputError(
                f"The run in {folder} was begun with another config (different: {', '.join(changed)}): "
                "restore those fields, or give another --run-dir."
            )
    with _writable(folder):
        path.write_text(yaml.safe_dump(wanted, sort_keys=False), encoding="utf-8")


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [d for k in keys for d in _differences(before.get(k), after.get(k), f"{path}.{k}" if path else str(k))]
    return [] if before == after else [path]


def _write_environment(folder: Path, device: torch.device, learner: Learner) -> None:
    record = {
        "vlora": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "processes": machine.processes(),
        "parallel": machine.parallelism(learner.config),
        "threads": torch.get_num_threads(),
        "language_model_dtype": str(next(learner.language_model.parameters()).dtype),
        "trainable_parameters": sum(p.numel() for p in learner.model.parameters() if p.requires_grad),
    }
    with _writable(folder):
        (folder / "environment.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
