"""The loader of a run: the micro-batches of one process, from the step it begins at to the last."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from ..data.formats import open_source
from ..data.sample import Source
from ..errors import ConfigError
from .config import DataSection, TrainConfig
from .learner import Learner
from .looks import Looks, Task
from .order import Order, Steps, share

MOST_WORKERS = 16


@dataclass(frozen=True)
class World:
    """The processes that share a step.

    Args:
        processes: how many there are.
        process: the number of this one.
        accumulation: micro-batches of each in a step.
    """

    processes: int
    process: int
    accumulation: int


def open_sources(section: DataSection) -> list[Source]:
    """The sources of a config, with names of their own.

    Raises:
        ConfigError: two of one name, or one without a sample.
        DataError: files that cannot be read.
    """
    sources: list[Source] = []
    for wanted in section.sources:
        fields = wanted.model_dump(exclude={"weight", "format", "path"})
        sources.append(open_source(wanted.format, wanted.path, **fields))
    problems = [f"data.sources.{n}: {s.name} holds no sample" for n, s in enumerate(sources) if not len(s)]
    names = [source.name for source in sources]
    problems += [
        f"data.sources.{number}.name: {name!r} is the name of another source too; give each its own"
        for number, name in enumerate(names)
        if name in names[:number]
    ]
    if problems:
        raise ConfigError("data.sources", problems)
    return sources


def looks_of(config: TrainConfig, learner: Learner) -> Looks:
    """The looks of a run."""
    limit = learner.model.config.get_text_config().max_position_embeddings
    return Looks(
        open_sources(config.data),
        learner.processor,
        per_look=config.data.questions_per_image,
        max_tokens=min(limit, config.data.max_text_tokens or limit),
        seed=config.train.seed,
        places=learner.places(),
    )


def longest_text(steps: Steps, looks: Looks) -> int:
    """Tokens of the longest text in the first steps, told by its letters: three to a token, which is few."""
    picks = [pick for number in range(min(steps.window, steps.per_epoch)) for pick in steps[number]]
    longest = max(looks.length(pick) for pick in picks)
    return min(looks.max_tokens or longest, longest // 3 + 16)


def steps_of(config: TrainConfig, looks: Looks) -> Steps:
    """The steps of a run."""
    section = config.data
    weights = [source.weight for source in section.sources if source.weight is not None]
    order = Order(
        [source.blocks for source in looks.sources],
        weights=weights or None,
        seed=config.train.seed,
        together=section.shuffle_blocks,
    )
    by_length = section.batches == "length"
    return Steps(order, size=config.train.images_per_step, length=looks.length if by_length else None)


def number_of_steps(config: TrainConfig, steps: Steps) -> int:
    """Optimiser steps of the whole run."""
    if config.train.steps is not None:
        return config.train.steps
    whole, part = divmod(config.train.epochs or 0, 1)
    return int(whole) * steps.per_epoch + math.ceil(part * steps.per_epoch)


def accumulation(config: TrainConfig, processes: int) -> int:
    """Micro-batches of each process in a step: the global batch stays what it is, whatever the number of processes."""
    per_process = math.ceil(config.train.images_per_step / processes)
    return math.ceil(per_process / (config.train.images_per_device or per_process))


class MicroBatches(Sampler[list[Task]]):
    """The tasks of one process, a micro-batch at a time.

    Every look counts the same in the mean over its step: what it weighs undoes the averages that the trainer takes,
    over micro-batches and over processes, which need not hold equally many looks.

    Args:
        steps: of the run.
        first: the step that is done first, counted from 0.
        last: the step that is no longer done.
        world: who shares a step.
    """

    def __init__(self, steps: Steps, *, first: int, last: int, world: World) -> None:
        self.steps, self.first, self.last, self.world = steps, first, last, world

    def __iter__(self) -> Iterator[list[Task]]:
        world = self.world
        for number in range(self.first, self.last):
            looks = self.steps[number]
            weight = world.processes * world.accumulation / len(looks)
            own = share(looks, processes=world.processes, accumulation=world.accumulation)[world.process]
            yield from ([Task(pick, weight) for pick in micro] for micro in own)

    def __len__(self) -> int:
        """Of the whole run, also where a part of it is done already: the trainer counts its steps by this."""
        return self.last * self.world.accumulation


def loader(looks: Looks, batches: MicroBatches, collate: Any, *, workers: int | str, device: torch.device) -> Any:
    """Read micro-batches, in worker processes if there are any."""
    count = _workers(device) if workers == "auto" else int(workers)
    return DataLoader(
        looks,
        batch_sampler=batches,  # type: ignore[arg-type]  # of tasks where torch expects numbers
        collate_fn=collate,
        num_workers=count,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if count else None,
        worker_init_fn=_deaf,
    )


def _deaf(_worker: int) -> None:
    """A worker leaves Ctrl-C to the trainer, which still needs it, and dies of a SIGTERM as any process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _workers(device: torch.device) -> int:
    """Beside a GPU its share of the cores; on a CPU none, as training needs every core itself."""
    if device.type == "cpu":
        return 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // local - 1))


def first_failure(batches: Sequence[dict[str, Any]]) -> None:
    """Raise what a worker could not use.

    Raises:
        DataError: the first of them.
    """
    for batch in batches:
        if batch["seen"].failure is not None:
            raise batch["seen"].failure
