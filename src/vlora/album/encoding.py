"""From images on a disk to an album: decoding in worker processes, batches through the model, one commit a batch.

    find ─► known by path, size and time? ─► workers: bytes, pixels ─► batch ─► visual parameters ─► commit
              │ yes                                                                                    │
              └─► nothing to do                                            what is lost here is one batch

Run again after a crash, the same command walks the same way and finds most of it done.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..errors import AlbumError, InputError
from .album import Problem
from .decode import Decoded, Decoder
from .entries import Entry
from .identity import Eyes
from .shards import Precision, pack
from .sources import ENDINGS, Found, Search, check
from .writer import Pictures, Writer

FLUSH = 1000
"""Files without new pictures that are written together."""

MAX_WORKERS = 8
PAGE = 64  # places that are looked up together; members of compressed tars come with their bytes


@dataclass
class Report:
    """What an encoding did.

    Args:
        album: the folder.
        found: images.
        encoded: pictures that were new to the album.
        unchanged: files that the album had, by path, size and time.
        repeated: other files whose picture the album had.
        unreadable: files that could not be read, and why.
        passed_over: files in folders and tars that are no images by their ending: how many of each ending.
        seconds: from the first file to the last commit.
    """

    album: str
    found: int = 0
    encoded: int = 0
    unchanged: int = 0
    repeated: int = 0
    unreadable: list[Problem] = field(default_factory=list[Problem])
    passed_over: dict[str, int] = field(default_factory=dict[str, int])
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Of what had to be read; what was unchanged counts for nothing."""
        return (self.found - self.unchanged) / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "album": self.album,
            "found": self.found,
            "encoded": self.encoded,
            "unchanged": self.unchanged,
            "repeated": self.repeated,
            "unreadable": [problem._asdict() for problem in self.unreadable],
            "passed_over": self.passed_over,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
        }


@dataclass(frozen=True)
class Progress:
    """How far an encoding is.

    Args:
        done: images read, or known.
        total: images found, as far as counted.
        encoded: new pictures stored.
        unreadable: files that could not be read.
        images_per_second: of those that had to be read.
        seconds_left: at that rate; None before there is one.
    """

    done: int
    total: int
    encoded: int
    unreadable: int
    images_per_second: float
    seconds_left: float | None


Tell: TypeAlias = Callable[[Progress], None]


def encode(
    eyes: Eyes,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    album: str | Path,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    dtype: Precision | None = None,
    model: str = "",
    reread: bool = False,
    progress: Tell | None = None,
) -> Report:
    """Look at images once, and keep what was seen in an album, which is made if need be.

    Args:
        eyes: the model, as `vlora.load` gives it.
        sources: folders, images, tars, or lists of paths.
        album: the folder of the album.
        batch_size: pictures at a time; as many are lost if the process is killed.
        workers: processes that decode; 0 decodes in this one; None: one for each further core, at most 8.
        dtype: `float32`, `bfloat16` or `int8`; None: that of the album, float32 for a new one.
        model: the name of the model, for those who read the album; default: the one it was loaded by.
        reread: read files again that have not changed by size and time.
        progress: told after each batch.

    Returns:
        What was done. Images that cannot be read are in it, and in the album; the others are encoded.

    Raises:
        InputError: no such source, no image in any, an impossible batch, or an album of another precision.
        AlbumError: an album of another model, or one that cannot be written; what was committed stays.
    """
    named = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    check(named)
    if batch_size < 1 or (workers or 0) < 0:
        raise InputError(f"A batch of {batch_size} and {workers} workers are not possible: give at least 1, and 0.")
    with Writer.create(album, eyes, dtype=dtype, model=model) as writer:
        work = Work(writer, named, reread=reread, progress=progress)
        decoder = Decoder(eyes.processor.image_processor, writer.folder)
        waiting: Iterator[Found] | list[Found] = work.unknown()
        while True:
            _run(eyes, work, decoder, waiting, batch_size, _workers(workers))
            if not work.lost:
                return work.finish()
            # Whatever the index says: a picture that is prepared anew cannot be lost again.
            waiting, work.lost, decoder = work.lost, [], Decoder(eyes.processor.image_processor)


def _run(eyes: Eyes, work: Work, decoder: Decoder, waiting: Any, batch_size: int, workers: int) -> None:
    batch = list[Decoded]()
    fresh = set[str]()
    work.writer.close()  # workers are forks of this process, and must find no open database
    for decoded in _decoded(decoder, waiting, batch_size, workers):
        batch.append(decoded)
        if decoded.pixels is not None:
            fresh.add(decoded.image)
        if len(fresh) >= batch_size or len(batch) >= batch_size + FLUSH:
            _finish(eyes, work, batch)
            batch, fresh = [], set()
    _finish(eyes, work, batch)
    decoder.close()


def _decoded(decoder: Decoder, waiting: Any, batch_size: int, workers: int) -> Iterator[Decoded]:
    """Decoded images in the order of `waiting`, two batches ahead of the model."""
    ahead = max(2, -(-2 * batch_size // workers)) if workers else None
    loader: Any = DataLoader(
        decoder,  # type: ignore[arg-type]
        sampler=waiting,  # the places themselves are the indices
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        worker_init_fn=_end_with_parent,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise AlbumError(
            "A decoding worker was killed, for want of memory perhaps: what was committed is not lost; run this again, "
            "with fewer --workers."
        ) from error


def _end_with_parent(_worker: int) -> None:
    """End a worker whose parent was killed.

    torch looks for that too, but a worker that is writing a picture into a full pipe never gets there: the other
    workers hold the reading end open; and one whose parent died before it looked first takes another for its parent.
    """
    parent = os.getppid()
    if multiprocessing.get_start_method() != "forkserver":  # which stands between the two
        parent = getattr(multiprocessing.parent_process(), "pid", parent)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_it_is(decoded: Decoded) -> Decoded:
    """Arrays travel through a pipe: shared memory is scarce in containers."""
    return decoded


def _finish(eyes: Eyes, work: Work, batch: Sequence[Decoded]) -> None:
    """Perceive the new pictures of a batch, and commit it."""
    fresh = {one.image: one for one in batch if one.pixels is not None}
    known = work.stored(fresh)
    new = [one for name, one in fresh.items() if name not in known]
    values = None
    if new:
        pixels = torch.from_numpy(np.stack([one.pixels for one in new if one.pixels is not None]))
        with torch.inference_mode():
            values = eyes.model.perceive(pixels.to(eyes.model.device)).values
    work.commit(batch, new, values)


class Work:
    """An encoding in progress: what is to be done, and what has been.

    Args:
        writer: of the album.
        sources: what the user named.
        reread: as in `encode`.
        progress: as in `encode`.
    """

    def __init__(
        self,
        writer: Writer,
        sources: Sequence[str | os.PathLike[str]],
        *,
        reread: bool = False,
        progress: Tell | None = None,
    ) -> None:
        self.writer, self.reread, self.progress = writer, reread, progress
        self.search, counted = Search(sources), Search(sources, contents=False)
        self.total = sum(1 for _ in counted)
        if not self.total:
            others = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in counted.passed_over.items())
            raise InputError(
                f"There is no image in what was named ({others or 'nothing'}): give folders, tars or lists with "
                f"{', '.join(ENDINGS)} files, or convert these first."
            )
        self.report = Report(str(writer.folder))
        self.lost = list[Found]()
        """Files whose picture was taken out of the album by another process meanwhile."""
        self._started = time.perf_counter()
        self._done = 0

    def unknown(self) -> Iterator[Found]:
        """Images that must be read: not those that the album has, unchanged."""
        found = iter(self.search)
        while page := list(islice(found, PAGE)):
            self.report.found += len(page)
            known: dict[str, tuple[Any, ...]] = {}
            if not self.reread:
                query = "SELECT path, bytes, time FROM files WHERE path IN (?*)"
                known = {row[0]: row[1:] for row in self.writer.index.among(query, [one.path for one in page])}
            for one in page:
                if one.reason is None and known.get(one.path) == (one.bytes, one.time):
                    self.report.unchanged += 1
                    self._done += 1
                else:
                    yield one

    def stored(self, names: Any) -> set[str]:
        """Which of some pictures the album has."""
        return {row[0] for row in self.writer.index.among("SELECT hash FROM images WHERE hash IN (?*)", names)}

    def commit(self, batch: Sequence[Decoded], new: Sequence[Decoded], values: torch.Tensor | None) -> None:
        """Store a batch, and tell.

        Args:
            batch: all that was read.
            new: the pictures among it that are to be stored.
            values: their visual parameters, `[picture, targets, layers, dim]`.
        """
        problems = [Problem(one.found.path, one.reason) for one in batch if one.reason is not None]
        bad = set[str]()
        pictures = None
        if values is not None:
            finite = values.isfinite().flatten(1).all(1).tolist()
            bad = {one.image for one, good in zip(new, finite, strict=True) if not good}
            problems += [
                Problem(one.found.path, f"{one.found.path} gives visual parameters that are not finite: look at it.")
                for one in batch
                if one.image in bad
            ]
            kept = [number for number, good in enumerate(finite) if good]
            names, sizes = [new[number].image for number in kept], [new[number].size for number in kept]
            pictures = Pictures(names, sizes, pack(values[kept], self.writer.dtype)) if kept else None
        good = {one.found.path: one for one in batch if one.reason is None and one.image not in bad}
        files = [entry_of(one) for one in good.values()]
        lost = {entry.path for entry in self.writer.commit(pictures, files, problems)}
        self.lost += [good[path].found for path in lost]
        self._count(len(batch) - len(lost), 0 if pictures is None else len(pictures.names), len(files), problems)

    def _count(self, done: int, encoded: int, files: int, problems: Sequence[Problem]) -> None:
        self._done += done
        self.report.encoded += encoded
        self.report.repeated += files - encoded
        self.report.unreadable += problems
        self.report.seconds = time.perf_counter() - self._started
        if self.progress is not None:
            read = self._done - self.report.unchanged
            rate = read / self.report.seconds
            left = max(0, self.total - self._done) / rate if read else None
            unreadable = len(self.report.unreadable)
            self.progress(Progress(self._done, self.total, self.report.encoded, unreadable, rate, left))

    def finish(self) -> Report:
        """Join small shards, and report."""
        self.writer.compact(least=2)
        self.report.passed_over = dict(self.search.passed_over)
        self.report.seconds = time.perf_counter() - self._started
        return self.report


def entry_of(decoded: Decoded) -> Entry:
    """What the index will say of a file."""
    found = decoded.found
    return Entry(found.path, found.archive, decoded.image, found.bytes, found.time, decoded.file)


def _workers(wanted: int | None) -> int:
    """One for each core but the model's."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, max(1, cores - 1))
