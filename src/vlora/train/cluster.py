"""A run on a Ray cluster: many machines, workers that come and go, the same training function.

    driver ── Ray Train ──► workers, each: train(config, run_dir=..., resume="auto")
      ▲                        │
      └──────── Desk ◄─────────┘   how far it is, who trains, and the wish to stop

A worker that dies takes its group with it: Ray stops the others and begins a new group, of another size if it must,
which goes on from the last whole checkpoint of the run folder. Ray keeps no checkpoint of its own. What is no accident
is not tried again: a mistake of the user, and a run that was asked to stop, end it with their one sentence.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, MissingDependency, VLoRAError
from .config import TrainConfig
from .crew import Desk, Group, Job, lost, work

if TYPE_CHECKING:
    from .watch import Progress

LOOK_SECONDS = 0.3  # how often the driver asks for news
GROW_SECONDS = (
    300.0  # how often Ray looks for room for more workers; the steps since the last checkpoint are done again
)
STARTS = 10  # so many times, a minute each, Ray waits for room before it gives up


def workers_of(text: str) -> int | tuple[int, int]:
    """How many workers a text asks for: `4`, or from `1:8`.

    Raises:
        InputError: it is neither.
    """
    few, colon, many = text.partition(":")
    if not few.isdecimal() or (colon and not many.isdecimal()):
        raise InputError(f"The number of workers {text!r} is neither a number nor a range: give 4, or 1:8.")
    return (int(few), int(many)) if colon else int(few)


def train_on_ray(
    config: TrainConfig,
    *,
    run_dir: str | Path | None = None,
    address: str = "auto",
    workers: int | tuple[int, int] = 1,
    gpus_per_worker: int | None = None,
    max_failures: int = 3,
    resume: str = "none",
    report: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Path:
    """Train a model with the workers of a Ray cluster.

    Args:
        config: the experiment.
        run_dir: default `runs/NAME`; on a file system that all machines see under this path.
        address: of the cluster; `auto` for the one that this machine belongs to, `local` for one of our own, here.
        workers: how many, or from how few to how many; each is one process.
        gpus_per_worker: 0 or 1; None for 1 where the cluster has any and the config does not say cpu.
        max_failures: so often a lost worker is made up for; -1 for always.
        resume: as for `train`.
        report: told how far the run is.
        tell: told in words which workers train, and when some are lost.

    Returns:
        The folder of the final model.

    Raises:
        MissingDependency: Ray is not installed.
        InputError: no such cluster, or not enough room in it.
        Interrupted: Ctrl-C or SIGTERM; what was done is saved.
        VLoRAError: too many workers were lost, or what `train` raises.
    """
    few, many = _bounds(workers)
    if gpus_per_worker not in (None, 0, 1):
        raise InputError(
            f"A worker is one process and uses one GPU, but {gpus_per_worker} are asked for: give 0 or 1 GPUs per "
            "worker, and more workers."
        )
    if max_failures < -1:
        raise InputError(f"max_failures is {max_failures}: give 0 or more, or -1 for no limit.")
    ray = _ray()
    folder = Path(run_dir or Path("runs") / config.name).absolute()
    with _joined(address, many), tempfile.TemporaryDirectory(prefix="vlora-ray-") as storage:
        gpus = _gpus(config, gpus_per_worker)
        _check_room(few, gpus)
        desk = _desk()
        job = Job(config, folder, resume, Path.cwd(), desk)
        trainer = _trainer(
            job,
            workers=few if few == many else (few, many),
            gpus=gpus,
            max_failures=max_failures,
            storage=storage,
        )
        try:
            return Path(_follow(trainer, desk, report=report, tell=tell))
        finally:
            ray.kill(desk)


def _ray() -> Any:
    """Ray, told to be quiet.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import_module("ray.train")  # asks for more than Ray itself
        import ray
    except ImportError as error:
        raise MissingDependency(
            'Training on a cluster needs Ray: run `pip install "vlora-mllm[cluster]"`, or leave --ray away.'
        ) from error
    return ray


def _bounds(workers: int | tuple[int, int]) -> tuple[int, int]:
    few, many = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= few <= many:
        raise InputError(
            f"The number of workers {workers} cannot be: give 1 or more, and in a range the smaller first."
        )
    return few, many


@contextmanager
def _joined(address: str, many: int) -> Generator[None]:
    """Be part of a cluster; one that this process has joined before is taken, and not left."""
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        # No telemetry from a cluster of our own; and as many places as workers are asked for, fast or not.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"include_dashboard": False, "num_cpus": max(many, os.cpu_count() or 1)}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise InputError(
            f"There is no Ray cluster at {address!r}: start one with `ray start --head`, give its address, or use "
            "--ray local."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _gpus(config: TrainConfig, wanted: int | None) -> int:
    has = _ray().cluster_resources().get("GPU", 0) >= 1
    return int(has and config.train.device != "cpu") if wanted is None else wanted


def _check_room(few: int, gpus: int) -> None:
    """See that the cluster could hold the workers, if it had nothing else to do.

    Raises:
        InputError: it could not.
    """
    there = _ray().cluster_resources()
    places = int(min(there.get("CPU", 0), there.get("GPU", 0) / gpus if gpus else float("inf")))
    if places < few:
        raise InputError(
            f"The Ray cluster has room for {places} worker{'s' * (places != 1)} ({there.get('CPU', 0):g} CPUs, "
            f"{there.get('GPU', 0):g} GPUs), and {few} are asked for: give fewer --workers, or add machines."
        )


def _desk() -> Any:
    """The desk, on this machine: it must not be lost with a worker's."""
    ray = _ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Desk).options(scheduling_strategy=here).remote()


def _trainer(job: Job, *, workers: int | tuple[int, int], gpus: int, max_failures: int, storage: str) -> Any:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer

    class Judge(UserCallback):
        """Ends a run whose error would only come again; an error in a callback is not tried again."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            error = _final(list(worker_exceptions.values()))
            if error is not None:
                raise error

    return TorchTrainer(
        lambda: work(job),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})},
            elastic_resize_monitor_interval_s=GROW_SECONDS,
        ),
        run_config=RunConfig(
            name=job.config.name,
            storage_path=storage,  # of Ray's own notes; it is shown no checkpoint
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=STARTS),
            callbacks=[Judge()],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _final(errors: Sequence[Exception]) -> VLoRAError | None:
    """The error that ends a run: one of ours, unless a worker was lost, after which errors say little."""
    if any(lost(error) for error in errors):
        return None
    return next((error for error in errors if isinstance(error, VLoRAError)), None)


# ---- on the driver ------------------------------------------------------------------------------------------


def _follow(
    trainer: Any,
    desk: Any,
    *,
    report: Callable[[Progress], None] | None,
    tell: Callable[[str], None] | None,
) -> str:
    """Let the run go, pass its news on, and hand a wish to stop over to the workers."""
    ray = _ray()
    done: Future[Any] = Future()
    # In a thread, as Ray's own way with Ctrl-C, in the main one, kills the workers before they save.
    threading.Thread(target=_fit, args=(trainer, done), daemon=True).start()
    groups = 0
    with _wishes() as wished:
        told = False
        while True:
            over = done.done()  # looked at before the news, so that none is missed
            if wished.is_set() and not told:
                told = True
                ray.get(desk.stop.remote())
            groups = _pass_on(ray.get(desk.news.remote()), groups, report, tell)
            if over:
                return done.result()
            if told and not groups:
                from .run import Interrupted

                raise Interrupted("stopped before the workers began: nothing was done.")
            _wait(done)


def _wait(done: Future[Any]) -> None:
    try:
        done.exception(timeout=LOOK_SECONDS)
    except TimeoutError:
        return


def _pass_on(
    news: tuple[list[Group], list[dict[str, Any]]],
    groups: int,
    report: Callable[[Progress], None] | None,
    tell: Callable[[str], None] | None,
) -> int:
    from .watch import Progress

    for group in news[0][groups:]:
        if tell and group.number == 1:
            tell(f"workers: {group.workers}")
        elif tell:
            tell(f"workers: {group.workers}, going on from the last checkpoint, as some were lost or have come")
    for progress in news[1]:
        if report:
            report(Progress(**progress))
    return len(news[0])


def _fit(trainer: Any, done: Future[Any]) -> None:
    from ray.train import ControllerError, WorkerGroupError

    try:
        done.set_result(trainer.fit().return_value)
    except ControllerError as error:
        done.set_exception(_of_controller(error.controller_failure))
    except WorkerGroupError as error:
        done.set_exception(_of_workers(list(error.worker_failures.values())))
    except BaseException as error:
        done.set_exception(error)


def _of_controller(error: Exception) -> Exception:
    if isinstance(error, VLoRAError):
        return error
    if type(error).__name__ == "WorkerGroupStartupTimeoutError":
        return VLoRAError(
            f"The Ray cluster had no room for the workers for {STARTS} minutes: wait for other jobs, or give fewer "
            "--workers, and go on with --resume auto."
        )
    return error


def _of_workers(errors: list[Exception]) -> Exception:
    """What is said when as many workers were lost as may be."""
    gone = [error for error in errors if lost(error)]
    if not gone:  # a bug, which deserves its own name
        return next((error for error in errors if isinstance(error, VLoRAError)), errors[0])
    return VLoRAError(
        f"A worker was lost once more than --max-failures allows ({_reason(gone[0])}): look at its machine, and go on "
        "with --resume auto."
    )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".")[:200] if lines else type(error).__name__


@contextmanager
def _wishes() -> Generator[threading.Event]:
    """Ctrl-C and SIGTERM set the event; a second Ctrl-C ends everything at once."""
    wished = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wished
        return

    def wish(number: int, _frame: Any) -> None:
        if wished.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        wished.set()

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wished
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
