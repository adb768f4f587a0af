"""`vlora train`: from a config file to a generator."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from ..errors import InputError
from ._eyes import AsJson
from ._output import command, debugging, err, note, print_json, say

if TYPE_CHECKING:
    from ..train.watch import Progress

    class Report(Protocol):
        """Told how far a run is."""

        def __call__(self, progress: Progress, /) -> None: ...


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
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Train on a Ray cluster: its address, auto, or local.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N|MIN:MAX", help="Processes on the cluster; a range may shrink and grow.")
    ] = None,
    gpus_per_worker: Annotated[int | None, typer.Option(help="0 or 1; default 1 if the cluster has any.")] = None,
    max_failures: Annotated[int, typer.Option(help="Lost workers that are made up for; -1: all.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Train a generator from a config file."""
    # Checked before transformers is imported, which takes seconds.
    from ..train.config import load_config

    settings = load_config(config, overrides or [])
    if ray is None and (workers is not None or gpus_per_worker is not None):
        raise InputError("--workers and --gpus-per-worker are for a cluster: give --ray too, as in --ray local.")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with _progress() as report:
        if ray is None:
            from ..train.run import train as run

            final = run(settings, run_dir=run_dir, resume=resume, report=report)
        else:
            from ..train.cluster import train_on_ray, workers_of

            with redirect_stdout(sys.stderr if debugging() else StringIO()):  # Ray writes there when a worker dies
                final = train_on_ray(
                    settings,
                    run_dir=run_dir,
                    address=ray,
                    workers=workers_of(workers or "1"),
                    gpus_per_worker=gpus_per_worker,
                    max_failures=max_failures,
                    resume=resume,
                    report=report,
                    tell=note,
                )
    if int(os.environ.get("RANK", "0")):
        return  # one of several processes of torchrun: the first one answers
    if as_json:
        print_json({"name": settings.name, "model": str(final)})
    else:
        say(f"The model is in {final}: try `vlora ask IMAGE QUESTION --model {final}`.")


@contextmanager
def _progress() -> Generator[Report, None, None]:
    """A bar on stderr for a person, a line per report for a log."""
    if not sys.stderr.isatty():
        yield _line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"), console=err()) as bar:
        task = bar.add_task("", total=None, words="")

        def tell(progress: Progress, /) -> None:
            bar.update(task, completed=progress.step, total=progress.steps, words=_words(progress))

        yield tell


def _line(progress: Progress, /) -> None:
    note(f"step {progress.step} of {progress.steps}  {_words(progress)}")


def _words(progress: Progress) -> str:
    end = datetime.now().astimezone() + timedelta(seconds=progress.seconds_left)
    return (
        f"loss {progress.loss:.4f}  {progress.questions_per_second:.1f} questions/s  "
        f"{progress.images_per_second:.1f} images/s  ends {end:%a %H:%M}"
    )
