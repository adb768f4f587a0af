"""One shard: its samples with their images, written whole or not at all.

A shard is written beside its name, flushed to the disk, and renamed; then a note says what is in it. A shard without a
note is not finished.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError, ImageError
from ..formats.optional import needed
from ..images import MAX_BYTES, open_image, read_file
from ..sample import Sample, Source
from .plan import Task, unwritable, write_json

PARTS = ".parts"
BATCH_BYTES = 16_000_000
BATCH_ROWS = 1000


@dataclass
class Part:
    """A finished shard.

    Args:
        file: its name; None if none of its samples could be used.
        rows: samples in it.
        images: images in it.
        bytes: of the file.
        sha256: of the file.
        read: samples that were read for it.
        skipped: what was left out, with the reason.
    """

    file: str | None
    rows: int = 0
    images: int = 0
    bytes: int = 0
    sha256: str = ""
    read: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)


def schema() -> Any:
    """The columns of a shard."""
    pyarrow = needed("pyarrow", "Shards")
    text = pyarrow.string()
    turn = pyarrow.struct([("role", text), ("text", text)])
    return pyarrow.schema(
        [
            ("id", text),
            ("images", pyarrow.list_(pyarrow.binary())),
            ("conversations", pyarrow.list_(pyarrow.list_(turn))),
            ("characters", pyarrow.int32()),
        ]
    )


def samples_of(source: Source, task: Task) -> Iterator[Sample | DataError]:
    """The samples of a shard; instead of one that cannot be used, why."""
    for number in range(task.start, task.stop):
        try:
            found = source[number]
        except DataError as error:
            yield error
        else:
            yield found


def write_shard(
    samples: Iterable[Sample | DataError],
    folder: Path,
    number: int,
    *,
    prefix: str,
    check: bool,
    tell: Callable[[], None] = lambda: None,
) -> Part:
    """Write a shard, and a note that it is finished.

    Args:
        samples: see `samples_of`.
        folder: of the shards.
        number: of the shard.
        prefix: that the ids get.
        check: decode the images, and leave out what is broken; else only what cannot be read.
        tell: called for each sample.

    Raises:
        DataError: the disk does not take it.
    """
    part = Part(f"data-{number:05d}.arrow")
    partial = folder / f".data-{number:05d}.partial-{os.getpid()}"
    try:
        with partial.open("wb") as file:
            sink = _Hashed(file)
            _write(samples, sink, part, prefix=prefix, check=check, tell=tell)
            file.flush()
            os.fsync(file.fileno())
        part.bytes, part.sha256 = sink.count, sink.digest.hexdigest()
        if part.rows:
            partial.replace(folder / str(part.file))
        else:
            part.file = None
        write_json(folder / PARTS / f"{number:05d}.json", asdict(part))
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return part


class _Hashed:
    """A file that is hashed as it is written, as pyarrow takes it."""

    closed = False

    def __init__(self, file: Any) -> None:
        self.file, self.digest, self.count = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.file.write(data)
        self.count += len(data)
        return len(data)

    def flush(self) -> None:
        """Done once, at the end."""


def _write(
    samples: Iterable[Sample | DataError],
    sink: _Hashed,
    part: Part,
    *,
    prefix: str,
    check: bool,
    tell: Callable[[], None],
) -> None:
    pyarrow = needed("pyarrow", "Shards")
    columns = schema()
    with pyarrow.ipc.new_stream(sink, columns) as stream:
        rows: list[dict[str, Any]] = []
        held = 0
        for sample in samples:
            part.read += 1
            tell()
            row = _row(sample, part, prefix=prefix, check=check)
            if row is None:
                continue
            rows.append(row)
            held += sum(map(len, row["images"]))
            part.rows += 1
            part.images += len(row["images"])
            if held >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
                stream.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=columns))
                rows, held = [], 0
        if rows:
            stream.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=columns))


def _row(sample: Sample | DataError, part: Part, *, prefix: str, check: bool) -> dict[str, Any] | None:
    if isinstance(sample, DataError):
        part.skipped.append({"kind": "sample", "id": "", "where": "", "reason": str(sample)})
        return None
    images: list[bytes] = []
    for one in sample.images:
        try:
            images.append(_image(one, check=check))
        except ImageError as error:
            skipped = {"kind": "image", "id": f"{prefix}{sample.id}", "where": sample.where, "reason": str(error)}
            part.skipped.append(skipped)
            return None
    turns = [[{"role": one.role, "text": one.text} for one in messages] for messages in sample.conversations]
    return {
        "id": f"{prefix}{sample.id}",
        "images": images,
        "conversations": turns,
        "characters": max(sum(len(one["text"]) for one in messages) for messages in turns),
    }


def _image(image: str | bytes, *, check: bool) -> bytes:
    """The bytes of an image's file, as they are."""
    data = image if isinstance(image, bytes) else read_file(image)
    if check:
        try:
            open_image(data)
        except ImageError as error:
            raise ImageError(f"{image}: {error}" if isinstance(image, str) else str(error)) from error
    elif not data or len(data) > MAX_BYTES:
        raise ImageError(f"an image has {len(data)} bytes: give 1 to {MAX_BYTES}.")
    return data
