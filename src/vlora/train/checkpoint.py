"""Checkpoints of a run: whole or not there, and for any number of processes.

    run/.partial/checkpoint-N  ─ written, flushed ─►  renamed: run/checkpoint-N

    state/               what learns, and its optimiser state, by torch.distributed.checkpoint: each process writes its
                         part, and any other number of processes can read it
    trainer_state.json   step and history;  scheduler.pt, rng_state*.pth
    complete.json        the step; written last

The position in the data is the step (`order.py`), so it needs no file.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from ..errors import CheckpointError, VLoRAError

COMPLETE = "complete.json"  # written last: a checkpoint without it was cut off
PARTIAL = ".partial"
STATE = "state"

# Only what learns is saved; what is frozen comes from where the model was loaded from.
_OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=step_of, default=None)


def step_of(folder: Path) -> int:
    """The step that a checkpoint was made after."""
    return int(folder.name.rsplit("-", 1)[1])


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write what learns and its optimiser state; every process calls this."""
    with _quiet():
        dcp.save(_state(model, optimizer), checkpoint_id=str(folder / STATE))


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read what `save_state` wrote, with this or another number of processes.

    Raises:
        CheckpointError: damaged, or of a model in which other parts learn.
    """
    with _quiet():
        state = _state(model, optimizer)
        try:
            dcp.load(state, checkpoint_id=str(folder / STATE))
        except (CheckpointException, OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
            raise CheckpointError(
                f"The checkpoint {folder} is damaged, or other parts learn than when it was made "
                f"({_reason(error)}): go on from another one, or begin another run."
            ) from error
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=_OPTIONS,
        )


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    learns, moments = get_state_dict(model, optimizer, options=_OPTIONS)
    named = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    named = {name.removeprefix("module.") for name in named}
    return {"model": {name: value for name, value in learns.items() if name in named}, "optimizer": moments}


def finish(partial: Path, target: Path, *, step: int, keep: int) -> None:
    """Flush a checkpoint, give it its name, and drop the oldest beyond `keep`."""
    (partial / COMPLETE).write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
    for path in sorted(partial.rglob("*")):
        _flush(path)
    shutil.rmtree(target, ignore_errors=True)  # a cut-off one of an earlier version of this code
    os.replace(partial, target)
    _flush(target.parent)
    whole = sorted((path.parent for path in target.parent.glob(f"checkpoint-*/{COMPLETE}")), key=step_of)
    for old in whole[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def one_sentence(run: Path) -> Generator[None]:
    """Turn a checkpoint that cannot be written into one sentence; the earlier ones stay."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        shutil.rmtree(run / PARTIAL, ignore_errors=True)
        last = last_checkpoint(run)
        kept = f"{last.name} is whole" if last else "there is no earlier one"
        raise VLoRAError(
            f"A checkpoint cannot be written to {run} ({_reason(error)}), {kept}: make room, and go on with "
            "--resume auto."
        ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")[:200]


@contextmanager
def _quiet() -> Generator[None]:
    """torch warns that one process is one process, and that its own names have changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
