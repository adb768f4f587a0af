"""`vlora train`: from a config file to a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from ..errors import InputError
from ._eyes import AsJson
from ._output import INTERRUPTED, command, debugging, err, note, print_json, say

if TYPE_CHECKING:
    from ..train.config import TrainConfig
    from ..train.watch import Progress

    class Report(Protocol):
        """Told how far a run is."""

        def __call__(self, progress: Progress, /) -> None: ...


_PLAN, _RAY = "A plan (--plan)", "A cluster (--ray)"


@command
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, such as configs/nano.yaml.")],
    run_dir: Annotated[Path | None, typer.Option(help="Where the run is kept; default runs/NAME.")] = None,
    resume: Annotated[
        str, typer.Option(help="none; auto, from the last checkpoint if there is one; or a checkpoint.")
    ] = "none",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a field of the config; repeatable.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Train nothing: say what the run would take.", rich_help_panel=_PLAN)
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="That share the work.", rich_help_panel=_PLAN)] = 8,
    gpu_memory: Annotated[float, typer.Option(help="GB of one.", rich_help_panel=_PLAN)] = 80,
    gpu_tflops: Annotated[float, typer.Option(help="Of one, dense, in bfloat16.", rich_help_panel=_PLAN)] = 798,
    utilisation: Annotated[float, typer.Option(help="Share of them that is used.", rich_help_panel=_PLAN)] = 0.4,
    samples: Annotated[
        int | None, typer.Option(help="Of a pass over the data; default: counted.", rich_help_panel=_PLAN)
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Of a text; default 32 in pretrain, 256 in finetune.", rich_help_panel=_PLAN)
    ] = None,
    supervised: Annotated[
        int | None, typer.Option(help="Of those, with a loss; default all.", rich_help_panel=_PLAN)
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Train on a Ray cluster: its address, auto, or local.", rich_help_panel=_RAY
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN:MAX", help="Processes on it; a range may shrink and grow; default 1.", rich_help_panel=_RAY
        ),
    ] = None,
    gpus_per_worker: Annotated[
        int | None, typer.Option(help="0 or 1; default 1 if the cluster has any.", rich_help_panel=_RAY)
    ] = None,
    max_failures: Annotated[
        int, typer.Option(help="Lost workers that are made up for; -1: all.", rich_help_panel=_RAY)
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """Train a model from a config file, or plan it; with torchrun, on several GPUs.

    Ctrl-C ends the step and saves: go on with --resume auto.
    """
    # Checked before transformers is imported, which takes seconds.
    from ..train.config import load_config

    settings = load_config(config, overrides or [])
    if plan:
        from ._plan import show_plan

        show_plan(
            settings,
            gpus=gpus,
            gpu_memory=gpu_memory,
            gpu_tflops=gpu_tflops,
            utilisation=utilisation,
            samples=samples,
            tokens=tokens,
            supervised=supervised,
            as_json=as_json,
        )
        return
    if ray is None and (workers is not None or gpus_per_worker is not None):
        raise InputError("--workers and --gpus-per-worker are for a cluster: give --ray too, as in --ray local.")
    from transformers.utils import logging as transformers_logging

    from ..train.machine import part
    from ..train.run import Interrupted
    from ..train.run import train as run

    transformers_logging.disable_progress_bar()
    try:
        with _progress() as report:
            if ray is None:
                final = run(settings, run_dir=run_dir, resume=resume, report=report)
            else:
                final = _on_ray(
                    settings,
                    run_dir=run_dir,
                    address=ray,
                    workers=workers,
                    gpus_per_worker=gpus_per_worker,
                    max_failures=max_failures,
                    resume=resume,
                    report=report,
                )
        part()
    except Interrupted as stopped:
        part()
        if _first():
            note(f"Interrupted: {stopped}")
        raise typer.Exit(INTERRUPTED) from stopped
    if not _first():
        return
    if as_json:
        print_json({"name": settings.name, "model": str(final)})
    else:
        say(f"The model is in {final}{_advice(settings.paradigm, final)}")


def _on_ray(settings: TrainConfig, *, workers: str | None, **options: Any) -> Path:
    """Train on a cluster, without what Ray writes when a worker dies."""
    from ..train.cluster import train_on_ray, workers_of

    with redirect_stdout(sys.stderr if debugging() else StringIO()):
        return train_on_ray(settings, workers=workers_of(workers or "1"), tell=note, **options)


def _advice(paradigm: str, final: Path) -> str:
    return f": try `vlora ask IMAGE QUESTION --model {final}`." if paradigm == "weights" else "."


def _first() -> bool:
    """Whether this is the process of torchrun that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _progress() -> Generator[Report, None, None]:
    """A bar on stderr for a person, a line per report for a log."""
    if not sys.stderr.isatty():
        yield _line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"), console=err()) as bar:
        task = bar.add_task("", total=None, words="getting ready")

        def tell(progress: Progress, /) -> None:
            bar.update(task, completed=progress.step, total=progress.steps, words=_words(progress))

        yield tell


def _line(progress: Progress, /) -> None:
    note(f"step {progress.step} of {progress.steps}  {_words(progress)}")


def _words(progress: Progress) -> str:
    left = timedelta(seconds=round(progress.seconds_left))
    return (
        f"loss {progress.loss:.4f}  {progress.questions_per_second:.1f} texts/s  "
        f"{progress.images_per_second:.1f} images/s  {progress.text_tokens_per_second:.0f} text tokens/s  {left} left"
    )
