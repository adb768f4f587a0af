"""Several processes train as one does, and a run goes on with another number of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import vlora
from tests.train.processes import (
    check_every_id_once,
    command,
    finish,
    ids_by_step,
    largest_difference,
    largest_loss_difference,
    losses,
    start,
)

pytestmark = pytest.mark.slow

WHOLE = ("--set", "train.log_ids=true", "--set", "train.stored_dtype=float32")
FULL = ("--set", "stage=finetune", "--set", "train.language_model=full", "--set", "train.language_model_rate=0.001")
LORA = ("--set", "stage=finetune", "--set", "train.language_model=lora", "--set", "train.lora.dropout=0")


@pytest.fixture
def one(tiny_config: Path, tmp_path: Path) -> Path:
    """A run of one process, 12 steps of 4 looks over 40 samples."""
    run = tmp_path / "one"
    finish(command(tiny_config, run, *WHOLE))
    return run


def test_muon_of_two_processes_is_that_of_one(tiny_config: Path, tmp_path: Path) -> None:
    muon = (*WHOLE, *FULL, "--set", "train.optimizer=muon")
    for name, processes in (("one", 1), ("two", 2)):
        finish(command(tiny_config, tmp_path / name, *muon, processes=processes))
    assert '"parallel": "ddp"' in (tmp_path / "two" / "environment.json").read_text()
    assert largest_loss_difference(tmp_path / "one", tmp_path / "two") < 1e-4
    assert largest_difference(tmp_path / "one", tmp_path / "two") < 1e-3


def test_ddp_is_one_process_with_the_same_global_batch(tiny_config: Path, tmp_path: Path, one: Path) -> None:
    two = tmp_path / "two"
    finish(command(tiny_config, two, *WHOLE, processes=2))
    assert largest_loss_difference(one, two) < 1e-4
    assert largest_difference(one, two) < 1e-4
    assert {step: sorted(ids) for step, ids in ids_by_step(two).items()} == {
        step: sorted(ids) for step, ids in ids_by_step(one).items()
    }
    uneven = tmp_path / "uneven"  # three processes share four looks, in two micro-batches each
    finish(command(tiny_config, uneven, *WHOLE, "--set", "train.images_per_device=1", processes=3))
    assert largest_loss_difference(one, uneven) < 1e-4
    assert largest_difference(one, uneven) < 1e-4


def test_one_then_two_then_one_process(tiny_config: Path, tmp_path: Path, one: Path) -> None:
    run = tmp_path / "changing"
    for steps, processes in ((4, 1), (8, 2), (12, 1)):
        # As a killed run: what the first legs write at their end is taken away.
        shutil.rmtree(run / "final", ignore_errors=True)
        finish(
            command(tiny_config, run, *WHOLE, "--resume", "auto", "--set", f"train.steps={steps}", processes=processes)
        )
    check_every_id_once(run, steps=12, per_epoch=10, samples=40)
    assert ids_by_step(run).keys() == ids_by_step(one).keys()
    assert all(sorted(ids_by_step(run)[step]) == sorted(ids_by_step(one)[step]) for step in ids_by_step(one))


@pytest.mark.parametrize("stage", [FULL, LORA], ids=["full", "lora"])
def test_fsdp_trains_and_goes_on_as_one_process(tiny_config: Path, tmp_path: Path, stage: tuple[str, ...]) -> None:
    one, two, changed = (tmp_path / name for name in ("one", "two", "changed"))
    options = (*WHOLE, *stage, "--set", "train.parallel=fsdp")
    finish(command(tiny_config, one, *options))
    finish(command(tiny_config, two, *options, processes=2))
    assert '"parallel": "fsdp"' in (two / "environment.json").read_text()
    assert largest_loss_difference(one, two) < 1e-4
    assert largest_difference(one, two) < 1e-4
    assert losses(two)[12] < losses(two)[1]
    shutil.copytree(two, changed)
    shutil.rmtree(changed / "final")
    shutil.rmtree(changed / "checkpoint-12")
    finish(command(tiny_config, changed, *options, "--resume", "auto"))
    assert largest_loss_difference(one, changed) < 1e-4
    assert largest_difference(one, changed) < 1e-4
    assert isinstance(vlora.load(changed / "final").ask(None, "What is it?", max_new_tokens=2), str)


def test_a_loss_that_is_not_finite_ends_all_processes(tiny_config: Path, tmp_path: Path) -> None:
    process = start(command(tiny_config, tmp_path / "run", "--set", "train.learning_rate=1e38", processes=2))
    output, errors = process.communicate(timeout=280)
    assert process.returncode != 0
    assert "The loss is not finite at step" in errors, output + errors
