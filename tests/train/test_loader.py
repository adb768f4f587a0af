"""The loader: every look of a step once, whatever the number of processes, and each as heavy as the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from vlora.train.config import TrainConfig, load_config
from vlora.train.loader import MicroBatches, World, accumulation, number_of_steps
from vlora.train.order import Order, Steps


def tasks(processes: int, per_device: int | None, size: int = 12) -> list[list[tuple[int, float]]]:
    """(index, weight) of every step, all processes together."""
    config = settings(images_per_step=size, images_per_device=per_device)
    steps = Steps(Order([[30, 20]], weights=None, seed=3, together=2), size=size, length=lambda pick: pick.number % 7)
    count = accumulation(config, processes)
    read: list[list[tuple[int, float]]] = [[] for _ in range(2 * steps.per_epoch)]
    for process in range(processes):
        batches = MicroBatches(steps, first=0, last=len(read), world=World(processes, process, count))
        assert len(batches) == len(read) * count
        micro = list(batches)
        assert len(micro) == len(batches)
        if per_device:
            assert max(map(len, micro)) <= per_device
        for number, batch in enumerate(micro):
            read[number // count] += [(task.pick.number, task.weight / (processes * count)) for task in batch]
    return read


def settings(**train: object) -> TrainConfig:
    return TrainConfig.model_validate({"train": {"epochs": 1, **train}})


@pytest.mark.parametrize(("processes", "per_device"), [(1, None), (1, 5), (2, None), (3, 2), (5, 1), (16, None)])
def test_a_step_is_the_same_for_any_number_of_processes(processes: int, per_device: int | None) -> None:
    expected = [sorted(step) for step in tasks(1, None)]
    found = [sorted(step) for step in tasks(processes, per_device)]
    for before, after in zip(expected, found, strict=True):
        assert [index for index, _ in after] == [index for index, _ in before]
        assert [weight for _, weight in after] == pytest.approx([1 / len(before)] * len(before))
    for epoch in (found[:5], found[5:]):
        assert Counter(index for step in epoch for index, _ in step) == Counter(range(50))


def test_a_run_that_goes_on_reads_what_is_left() -> None:
    steps = Steps(Order([[50]], weights=None, seed=3, together=2), size=12, length=lambda pick: pick.number % 7)
    whole = list(MicroBatches(steps, first=0, last=10, world=World(1, 0, 1)))
    assert list(MicroBatches(steps, first=4, last=10, world=World(1, 0, 1))) == whole[4:]


@pytest.mark.parametrize(("epochs", "steps"), [(1, 5), (2, 10), (0.5, 3), (1.2, 6)])
def test_epochs_are_whole_steps(epochs: float, steps: int) -> None:
    of_run = Steps(Order([[50]], weights=None, seed=0, together=1), size=12)
    assert number_of_steps(settings(epochs=epochs), of_run) == steps


def test_the_global_batch_is_kept_by_accumulation() -> None:
    config = settings(images_per_step=768, images_per_device=24)
    assert [accumulation(config, processes) for processes in (1, 2, 8, 32, 5)] == [32, 16, 4, 1, 7]


@pytest.mark.parametrize(("name", "formats"), [("easy-vqa", {"easy-vqa"}), ("nano", {"nano", "easy-vqa"})])
def test_what_the_configs_read(name: str, formats: set[str]) -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    assert {source.format for source in config.data.sources} == formats
