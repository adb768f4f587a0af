"""Sources of any format become shards: in workers, resumable, and checked at the end."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from ...errors import DataError, InputError
from ..formats.shards import INDEX, VERSION, read_index
from ..sample import Sample, Source
from .huggingface import FEATURES, as_dataset
from .plan import PLAN, Input, Plan, ShardSize, Task, kept_plan, plan, unwritable, write_json
from .verify import verify
from .write import PARTS, Part, samples_of, write_shard

SKIPPED = "skipped.jsonl"

Tell: TypeAlias = Callable[[int, "int | None"], None]
"""Told how many samples are done, and of how many; None: not known."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion has written.

    Args:
        folder: of the shards.
        samples: in them.
        images: in them.
        bytes: of the shards.
        shards: how many.
        kept: shards that an earlier run had finished.
        broken_images: samples left out since an image of theirs is broken.
        unusable: samples left out since they keep to no rule.
    """

    folder: str
    samples: int
    images: int
    bytes: int
    shards: int
    kept: int
    broken_images: int
    unusable: int


def convert(
    inputs: Sequence[Input],
    folder: Path,
    *,
    size: ShardSize,
    workers: int = 1,
    check: bool = True,
    tell: Tell = lambda done, total: None,
) -> Conversion:
    """Write sources as shards; or go on where an earlier run of the same was stopped.

    Args:
        inputs: written one after the other; with several, ids begin with their names.
        folder: for the shards.
        size: of a shard.
        workers: processes that read and try images; 1: this one.
        check: decode each image and leave out what is broken.
        tell: see `Tell`.

    Raises:
        InputError: the folder is in use, or holds something else.
        DataError: a source or the folder cannot be used, or not a single sample.
    """
    sources = [None if one.streaming else one.open() for one in inputs]
    fresh = plan(inputs, sources, size=size, check=check)
    with _alone(folder):
        if (folder / INDEX).is_file():
            return _finished(folder, fresh)
        todo = kept_plan(folder, fresh)
        _clear(folder)
        before = _parts(folder)
        many = len(inputs) > 1
        prefixes = [f"{one.called}/" if many else "" for one in inputs]
        tasks = [task for task in todo.tasks() if task.number not in before]
        total = sum(state[0] for state in todo.states) if None not in sources else None
        count = _Counter(sum(part.read for part in before.values()), total, tell)
        if workers > 1 and len(tasks) > 1:
            _in_workers(tasks, sources, prefixes, folder, check=check, workers=workers, count=count)
        else:
            for task in tasks:
                source = sources[task.input]
                if source is not None:
                    found = samples_of(source, task)
                    write_shard(found, folder, task.number, prefix=prefixes[task.input], check=check, tell=count.add)
        _write_streams(inputs, folder, todo, prefixes, before=before, size=size, count=count)
        return _finish(folder, todo, kept=len(before))


# -- workers ----------------------------------------------------------------------------------------------


class _Counter:
    """Samples that are done, here and in the workers."""

    def __init__(self, done: int, total: int | None, tell: Tell) -> None:
        self.done, self.total, self.tell = done, total, tell
        self.tell(done, total)

    def add(self) -> None:
        self.set(self.done + 1)

    def set(self, done: int) -> None:
        self.done = done
        self.tell(done, self.total)


_state: dict[str, Any] = {}


class _Stopped(Exception):
    """The parent wants no more."""


def _begin(
    sources: list[Source | None], prefixes: list[str], folder: Path, check: bool, shared: Any, stop: Any
) -> None:
    """Prepare a worker; it ends when its parent is killed, which does not end it by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and tells
    _state.update(sources=sources, prefixes=prefixes, folder=folder, check=check, shared=shared, stop=stop)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _work(task: Task) -> int:
    shared, stop = _state["shared"], _state["stop"]

    def tell() -> None:
        if stop.is_set():
            raise _Stopped
        with shared.get_lock():
            shared.value += 1

    found = samples_of(_state["sources"][task.input], task)
    prefix = _state["prefixes"][task.input]
    write_shard(found, _state["folder"], task.number, prefix=prefix, check=_state["check"], tell=tell)
    return task.number


def _in_workers(
    tasks: list[Task],
    sources: Sequence[Source | None],
    prefixes: list[str],
    folder: Path,
    *,
    check: bool,
    workers: int,
    count: _Counter,
) -> None:
    # Spawned: what is opened here, threads of pyarrow included, is not copied half-way.
    context = multiprocessing.get_context("spawn")
    shared, stop = context.Value("Q", 0), context.Event()
    begun = count.done
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=context,
        initializer=_begin,
        initargs=(list(sources), prefixes, folder, check, shared, stop),
    )
    try:
        running: set[Future[int]] = {pool.submit(_work, task) for task in tasks}
        while running:
            done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            count.set(begun + shared.value)
            for one in done:
                one.result()
    except BrokenProcessPool as error:
        raise DataError(
            "A worker of the conversion was killed, perhaps for want of memory: run the same command again, with fewer "
            "--workers; what is finished is kept."
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


# -- streams ----------------------------------------------------------------------------------------------


def stream(input: Input, *, skip: int = 0) -> Iterator[Sample | DataError]:
    """The samples of a streamed source; instead of one that cannot be used, why.

    Raises:
        InputError: a format that is not streamed.
        DataError: it cannot be loaded.
    """
    from ..formats.dataset import stream_dataset

    if input.format != "dataset" or input.path is None:
        raise InputError(f"The format {input.format} is not streamed: leave out --stream, or name a dataset.")
    return stream_dataset(
        input.path,
        split=input.split,
        images=Path(input.images) if input.images else None,
        prompts=input.prompts,
        columns=input.columns,
        skip=skip,
    )


def _write_streams(
    inputs: Sequence[Input],
    folder: Path,
    todo: Plan,
    prefixes: list[str],
    *,
    before: dict[int, Part],
    size: ShardSize,
    count: _Counter,
) -> None:
    """Write the streamed sources, in their own order and in this process."""
    first = len(todo.tasks())
    for number, one in enumerate(inputs):
        if not one.streaming:
            continue
        # Shards of streams are numbered from a million times the place of their source on.
        base = first + 1_000_000 * number
        finished = sorted(key for key in before if base <= key < base + 1_000_000)
        read = sum(before[key].read for key in finished)
        samples = stream(one, skip=read)
        left = None if one.limit is None else one.limit - read
        rest = itertools.islice(samples, left) if left is not None else samples
        for shard in itertools.count(base + len(finished)):
            head = next(rest, None)
            if head is None:
                break
            piece = _piece(itertools.chain([head], rest), size)
            write_shard(piece, folder, shard, prefix=prefixes[number], check=todo.check, tell=count.add)


def _piece(samples: Iterator[Sample | DataError], size: ShardSize) -> Iterator[Sample | DataError]:
    """As many samples as go into a shard."""
    held = 0
    for number, sample in enumerate(samples, 1):
        yield sample
        if isinstance(sample, Sample):
            held += sum(len(one) for one in sample.images if isinstance(one, bytes)) + 64
        if number == size.rows or (size.megabytes and held >= size.megabytes * 1_000_000):
            return


# -- the folder -------------------------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keep a second conversion away from the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"Another conversion is writing to {folder}: wait for it, or give another folder.") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)  # while it is held, so that nobody takes a lock that is gone
        lock.release()


def _clear(folder: Path) -> None:
    """Remove what a killed run has left half-written."""
    try:
        (folder / PARTS).mkdir(exist_ok=True)
        for one in (*folder.glob(".data-*.partial-*"), *folder.glob(f"{PARTS}/.*.partial")):
            one.unlink()
    except OSError as error:
        raise unwritable(folder, error) from error


def _parts(folder: Path) -> dict[int, Part]:
    """The finished shards, by their number."""
    found: dict[int, Part] = {}
    for note in sorted((folder / PARTS).glob("*.json")):
        try:
            part = Part(**json.loads(note.read_text(encoding="utf-8")))
            whole = part.file is None or (folder / part.file).stat().st_size == part.bytes
        except (OSError, ValueError, TypeError):
            whole = False
            part = Part(None)
        if whole:
            found[int(note.stem)] = part
    return found


def _finish(folder: Path, todo: Plan, *, kept: int) -> Conversion:
    """Write the index, and check everything against it."""
    parts = _parts(folder)
    ordered = [parts[number] for number in sorted(parts)]
    skipped = [one for part in ordered for one in part.skipped]
    shards = [part for part in ordered if part.file is not None]
    try:
        with (folder / SKIPPED).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(one) + "\n" for one in skipped)
        if not shards:
            reason = f", for instance: {skipped[0]['reason']}" if skipped else ""
            raise DataError(f"Not one sample can be used, see {folder / SKIPPED}{reason}")
        index = {
            "version": VERSION,
            "samples": sum(part.rows for part in shards),
            "images": sum(part.images for part in shards),
            "broken_images": sum(one["kind"] == "image" for one in skipped),
            "unusable": sum(one["kind"] == "sample" for one in skipped),
            "plan": asdict(todo),
            "shards": [{key: getattr(one, key) for key in ("file", "rows", "bytes", "sha256")} for one in shards],
        }
        write_json(folder / "dataset_info.json", {"description": "", "features": FEATURES})
        write_json(folder / "state.json", as_dataset([str(part.file) for part in shards]))
        problems = verify(folder, index=index).problems
        if problems:
            raise DataError(f"The shards in {folder} are not what was written: {problems[0]}")
        write_json(folder / INDEX, index)
        _tidy(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    return _conversion(folder, index, kept=kept)


def _tidy(folder: Path) -> None:
    """Remove what was only for going on."""
    (folder / PLAN).unlink(missing_ok=True)
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def _finished(folder: Path, fresh: Plan) -> Conversion:
    """What an earlier run has written, if it is the same."""
    index = read_index(folder)
    if not Plan(**index["plan"]).same_as(fresh):
        raise InputError(f"The folder {folder} holds shards of other sources or options: give another folder.")
    problems = verify(folder).problems
    if problems:
        raise DataError(f"{problems[0]} Remove {folder}, and convert again.")
    _tidy(folder)
    return _conversion(folder, index, kept=len(index["shards"]))


def _conversion(folder: Path, index: dict[str, Any], *, kept: int) -> Conversion:
    return Conversion(
        folder=str(folder),
        samples=index["samples"],
        images=index["images"],
        bytes=sum(one["bytes"] for one in index["shards"]),
        shards=len(index["shards"]),
        kept=kept,
        broken_images=index["broken_images"],
        unusable=index["unusable"],
    )
