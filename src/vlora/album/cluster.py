"""The same encoding over a cluster: a Ray Data job whose actors hold the model.

    driver                                    actors, one model each
    find ─► unknown ─► blocks of places ────► read, decode, perceive
    album ◄─ commit, one block at a time ◄─── visual parameters

Only the driver writes to the album. Ray computes a block again if the process that had it died, and gives each block
to the driver once; should one come twice nevertheless, its pictures are there already, by their hash. So every picture
is stored exactly once, and if the driver itself dies, the same command goes on, as it does on one machine.

The files must lie where every machine finds them by the same path.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import AlbumError, InputError, MissingDependency
from .decode import Decoded, Decoder
from .encoding import Report, Tell, Work
from .identity import Eyes, Identity
from .shards import Precision
from .sources import TARS, Found, check
from .writer import Writer

LOCAL = "local"
MANY_BLOCKS = 10_000
KNOCK_SECONDS = 5.0
MANY_CORES, CORES_PER_ACTOR = 8, 4

Batch = dict[str, Any]


class Perceiver:
    """What an actor holds: a model, and threads that decode for it.

    Args:
        load: gives the model.
        identity: which model it must be, see `Identity.to_json`.
        threads: that decode.
    """

    def __init__(self, load: Callable[[], Eyes], identity: str, threads: int) -> None:
        self.eyes = load()
        Identity.from_json(identity).check(
            Identity.of(self.eyes), album="of this job", model=f"that of {os.uname()[1]}"
        )
        generator = self.eyes.model.model.generator
        self.shape = (len(generator.targets), len(generator.layers), generator.config.dim)
        self.decoder = Decoder(self.eyes.processor.image_processor)
        self.pool = ThreadPoolExecutor(threads)

    def __call__(self, batch: Batch) -> Batch:
        """Places of images -> what was seen, one row each."""
        decoded = list(self.pool.map(self.decoder.__getitem__, _places(batch)))
        values = np.zeros((len(decoded), *self.shape), np.float32)
        good = [row for row, one in enumerate(decoded) if one.pixels is not None]
        if good:
            pixels = torch.from_numpy(np.stack([decoded[row].pixels for row in good]))  # type: ignore[arg-type]
            with torch.inference_mode():
                seen = self.eyes.model.perceive(pixels.to(self.eyes.model.device)).values
            values[good] = seen.float().cpu().numpy()
        return batch | {
            "file": np.array([one.file for one in decoded], object),
            "image": np.array([one.image for one in decoded], object),
            "width": np.array([one.size[0] for one in decoded]),
            "height": np.array([one.size[1] for one in decoded]),
            "reason": np.array([one.reason or "" for one in decoded], object),
            "process": np.full(len(decoded), os.getpid()),
            "values": values,
        }


def _rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Places as rows of a table, in which None is no value."""
    return [
        {
            "path": one.path,
            "bytes": one.bytes,
            "time": one.time,
            "archive": one.archive or "",
            "offset": -1 if one.offset is None else one.offset,
            "reason": one.reason or "",
        }
        for one in found
    ]


def _places(batch: Batch) -> list[Found]:
    columns = (batch[name].tolist() for name in ("path", "bytes", "time", "archive", "offset", "reason"))
    return [
        Found(path, size, time, archive or None, None if offset < 0 else offset, None, reason or None)
        for path, size, time, archive, offset, reason in zip(*columns, strict=True)
    ]


def encode_on_cluster(
    eyes: Eyes,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    album: str | Path,
    *,
    address: str,
    load: Callable[[], Eyes],
    batch_size: int = 32,
    workers: int | None = None,
    dtype: Precision | None = None,
    model: str = "",
    reread: bool = False,
    progress: Tell | None = None,
    watch: Callable[[list[int]], None] | None = None,
) -> Report:
    """As `encode`, with the work done by the machines of a Ray cluster.

    Args:
        eyes: the model, on this machine; tells which album it may be.
        sources: folders, images, tars that are not compressed, or lists; on a disk that all machines share.
        album: the folder of the album, on this machine.
        address: of the cluster (`auto`, `host:port`, `ray://host:port`), or `local` for one on this machine.
        load: gives the same model on another machine, for instance `functools.partial(vlora.load, "nano")`.
        batch_size: pictures at a time.
        workers: actors, each with a model of its own; None: one for each GPU, or for every few cores.
        dtype: as in `encode`.
        model: as in `encode`.
        reread: as in `encode`.
        progress: as in `encode`.
        watch: told the ids of the processes that did each batch.

    Raises:
        MissingDependency: Ray is not installed.
        InputError: as in `encode`, or a compressed tar.
        AlbumError: as in `encode`, or a cluster that cannot be reached or fails.
    """
    named = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    check(named)
    if min(batch_size, 1 if workers is None else workers) < 1:
        raise InputError(f"A batch of {batch_size} and {workers} workers are not possible: give at least 1 of each.")
    _refuse_compressed(named)
    with _ray(address) as ray, Writer.create(album, eyes, dtype=dtype, model=model) as writer:
        work = Work(writer, named, reread=reread, progress=progress)
        waiting = list(work.unknown())
        while waiting:
            work.lost = []
            for batch in _seen(ray, waiting, load, writer.identity.to_json(), batch_size, workers):
                if watch is not None:
                    watch(sorted(set(batch["process"].tolist())))
                _commit(work, batch)
            waiting = work.lost
        return work.finish()


def _refuse_compressed(sources: Sequence[str | os.PathLike[str]]) -> None:
    for source in (os.fspath(source) for source in sources):
        if source.lower().endswith(TARS) and not source.lower().endswith(".tar"):
            raise InputError(
                f"{source!r} is compressed, so that several machines cannot read it at once: unpack it to a .tar, or "
                "encode it without --ray."
            )


def _seen(
    ray: Any, waiting: list[Found], load: Callable[[], Eyes], identity: str, batch_size: int, workers: int | None
) -> Iterator[Batch]:
    """What the actors saw, a block at a time, in whatever order they finish."""
    found = ray.cluster_resources()
    cores, gpus = int(found.get("CPU", 1)), int(found.get("GPU", 0))
    each = CORES_PER_ACTOR if cores >= MANY_CORES else 1
    actors = workers or gpus or max(1, cores // each - 1)
    blocks = min(-(-len(waiting) // batch_size), MANY_BLOCKS)
    rows = ray.data.from_items(_rows(waiting), override_num_blocks=blocks)
    seen = rows.map_batches(
        Perceiver,
        batch_size=batch_size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        fn_constructor_kwargs={"load": load, "identity": identity, "threads": each},
        num_cpus=each,
        num_gpus=1 if gpus else None,
    )
    try:
        yield from seen.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
    except ray.exceptions.RayError as error:
        raise _failed(error) from error


def _commit(work: Work, batch: Batch) -> None:
    names = ("file", "image", "width", "height", "reason")
    columns = (batch[name].tolist() for name in names)
    decoded = [
        Decoded(place._replace(reason=None), file, image, (width, height), None, reason or None)
        for place, file, image, width, height, reason in zip(_places(batch), *columns, strict=True)
    ]
    rows = {one.image: row for row, one in enumerate(decoded) if one.reason is None}
    there = work.stored(rows)
    new = [row for image, row in rows.items() if image not in there]
    values = torch.from_numpy(np.ascontiguousarray(batch["values"][new])) if new else None
    work.commit(decoded, [decoded[row] for row in new], values)


def require_ray() -> None:
    """Refuse what needs Ray where it is not installed.

    Raises:
        MissingDependency: it is not.
    """
    try:
        found = find_spec("ray.data") is not None and find_spec("pyarrow") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise MissingDependency(
            "Encoding on a cluster needs Ray, which is not installed: pip install 'vlora-mllm[cluster]'."
        )


@contextmanager
def _ray(address: str) -> Generator[Any]:
    """A connection to a cluster, quiet, and closed at the end."""
    require_ray()
    # Actors without a GPU leave the variables alone; the log of the core is no word to a user.
    for name, value in (("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"), ("RAY_BACKEND_LOG_LEVEL", "fatal")):
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    _knock(address)
    where = {"include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)  # type: ignore[arg-type]
    except Exception as error:  # whatever the network says
        raise _nobody(address, error) from error
    settings: Any = ray.data.DataContext.get_current()
    settings.enable_progress_bars = settings.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Find out in seconds that nobody is there, for which Ray takes minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _nobody(address, error) from error


def _nobody(address: str, error: Exception) -> AlbumError:
    return AlbumError(
        f"There is no Ray cluster at {address!r} ({_reason(error)}): give the address that `ray start --head` prints, "
        "auto on one of its machines, or local to start one here."
    )


def _failed(error: Exception) -> AlbumError:
    return AlbumError(
        f"The Ray cluster failed ({_reason(error)}): what was committed is not lost; look at `ray status`, and run "
        "this again."
    )


def _reason(error: Exception) -> str:
    """The last line: what Ray says first is where, not what."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")[:200]
