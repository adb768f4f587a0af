"""Death at any moment, broken pictures, loss that is not finite, Ctrl-C, a full disk: one sentence, and nothing lost."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.train.processes import (
    check_every_id_once,
    command,
    finish,
    largest_difference,
    largest_loss_difference,
    start,
)
from vlora.train.checkpoint import last_checkpoint
from vlora.train.config import load_config

WHOLE = ("--set", "train.log_ids=true", "--set", "train.stored_dtype=float32")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_deaths_at_random_moments(tiny_config: Path, tmp_path: Path) -> None:
    """Three epochs of ten steps; killed 20 times, whatever it is doing, and resumed."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = (*WHOLE, "--set", "train.steps=30", "--set", "train.save_steps=1")
    finish(command(tiny_config, whole, *options))
    began = time.monotonic()
    finish(command(tiny_config, tmp_path / "timed", *options))
    length = time.monotonic() - began
    dice, deaths, reached = random.Random(0), 0, []
    while deaths < 20:
        process = start(command(tiny_config, broken, *options, "--resume", "auto"))
        # Somewhere in what is left of it: the start, a step, the writing of a checkpoint, the end.
        before = last_checkpoint(broken)
        deadline, wait = time.monotonic() + 120, dice.uniform(0, 0.12)
        while _newest(broken) == _name(before) and process.poll() is None and time.monotonic() < deadline:
            if dice.random() < 0.001 and time.monotonic() - deadline + 120 > length / 3:
                break  # sometimes before it has come any further
            time.sleep(0.002)
        time.sleep(wait)
        if process.poll() is not None:
            process.communicate()
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        deaths += 1
        reached.append(_name(last_checkpoint(broken)))
    finish(command(tiny_config, broken, *options, "--resume", "auto"))
    assert deaths >= 10, f"the run was over after {deaths} deaths"
    check_every_id_once(broken, steps=30, per_epoch=10, samples=40)
    assert largest_loss_difference(whole, broken) < 1e-4
    assert largest_difference(whole, broken) < 1e-4


def _newest(run: Path) -> str:
    names = [path.name for path in run.glob("checkpoint-*")]
    return max(names, key=lambda name: int(name.split("-")[1]), default="")


def _name(checkpoint: Path | None) -> str:
    return checkpoint.name if checkpoint else ""


def settings(config: Path, *overrides: str) -> Any:
    return load_config(config, list(overrides))
