"""What runs inside of a Ray cluster: the workers of a run, and the desk where the driver meets them.

Nothing here imports Ray before it runs on a cluster; the driver is in `cluster.py`.
"""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import InputError, VLoRAError
from .config import TrainConfig

if TYPE_CHECKING:
    from .watch import Progress


@dataclass(frozen=True)
class Group:
    """The workers that train together, until one of them is lost.

    Attributes:
        number: of the group, counted from 1.
        workers: how many they are.
    """

    number: int
    workers: int


@dataclass(frozen=True)
class Job:
    """What every worker is given.

    Args:
        config: of the run.
        folder: of the run, on a file system that all of them see.
        resume: of the first group; the later ones go on from the last checkpoint.
        home: the driver's working directory, where relative paths of the config begin.
        desk: where the driver is met.
    """

    config: TrainConfig
    folder: Path
    resume: str
    home: Path
    desk: Any


class Desk:
    """Where workers and driver meet; an actor on the driver's machine."""

    def __init__(self) -> None:
        import asyncio

        self.groups: list[Group] = []
        self.progress: list[dict[str, Any]] = []
        self.stopped = asyncio.Event()

    async def begin(self, workers: int) -> int:
        """Enter a group that begins; its number, counted from 1."""
        self.groups.append(Group(len(self.groups) + 1, workers))
        return len(self.groups)

    async def tell(self, progress: dict[str, Any]) -> None:
        """Leave how far the run is."""
        self.progress.append(progress)

    async def news(self) -> tuple[list[Group], list[dict[str, Any]]]:
        """All groups so far, and the progress since the last call."""
        fresh, self.progress = self.progress, []
        return self.groups, fresh

    async def stop(self) -> None:
        """Wish that the run saves itself and ends."""
        self.stopped.set()

    async def wish(self) -> None:
        """Return when the run shall end."""
        await self.stopped.wait()


def lost(error: BaseException | None) -> bool:
    """Whether an error is Ray's about a dead worker, or torch's about one that does not answer."""
    kind = type(error)
    return kind.__module__.startswith("ray.") or kind.__name__.startswith("Dist") or "by peer" in str(error)


def work(job: Job) -> str:
    """Train, in one of the processes of a group."""
    import ray
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    context = get_context()
    first, workers = context.get_world_rank() == 0, context.get_world_size()
    _go_home(job)
    group = cast(int, broadcast_from_rank_zero(ray.get(job.desk.begin.remote(workers)) if first else None))
    stop = threading.Event()
    if first:
        threading.Thread(target=_listen, args=(job.desk, stop), daemon=True).start()
    from .run import train

    def report(progress: Progress) -> None:
        job.desk.tell.remote(asdict(progress))

    try:
        final = train(
            job.config,
            run_dir=job.folder,
            resume=job.resume if group == 1 else "auto",
            report=report,
            callbacks=[_ray_metrics()],
            stop=stop.is_set,
        )
    except VLoRAError as error:
        if lost(error.__cause__):  # a worker that died can look like a damaged checkpoint to the others
            raise RuntimeError(str(error.__cause__)) from error
        raise
    return str(final)


def _go_home(job: Job) -> None:
    """Work where the driver works, so that the config's relative paths mean the same."""
    try:
        os.chdir(job.home)
    except OSError as error:
        raise InputError(
            f"The folder {job.home}, where the run was started, is not on every machine of the cluster: start it in a "
            "folder of a shared file system."
        ) from error


def _listen(desk: Any, stop: threading.Event) -> None:
    import ray
    from ray.exceptions import RayError

    try:
        ray.get(desk.wish.remote())
    except RayError:
        return  # the run is over
    stop.set()


def _ray_metrics() -> Any:
    """Tells Ray how the run goes: gauges for its dashboard at every log step, a report at every checkpoint."""
    import ray.train
    from ray.util.metrics import Gauge
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    names = ("loss", "images_per_second", "questions_per_second", "text_tokens_per_second")
    gauges = {name: Gauge(f"vlora_{name}", description=name.replace("_", " ")) for name in names}

    class RayMetrics(TrainerCallback):
        """See above."""

        def __init__(self) -> None:
            self.last: dict[str, float] = {}

        def on_log(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            logs: dict[str, float] | None = None,
            **_: Any,
        ) -> None:
            if not state.is_world_process_zero:
                return
            self.last |= {name: float(logs[name]) for name in names if name in (logs or {})}  # type: ignore[index]
            for name, value in self.last.items():
                gauges[name].set(value)

        def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
            # Every worker must come by, and may have to wait for Ray: not at every step.
            ray.train.report({"step": state.global_step, **self.last})

    return RayMetrics()
