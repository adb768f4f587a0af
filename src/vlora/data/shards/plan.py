"""Which samples of which source go into which shard."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import DataError, InputError
from ..formats import name_of, open_source
from ..sample import Source

PLAN = "plan.json"
TRIED = 200
"""Samples of a source that tell how large its shards will be."""

_SIZE = re.compile(r"(\d+)\s*(MB|GB|rows)", re.IGNORECASE)


@dataclass(frozen=True)
class Input:
    """A source to be converted, by the arguments of `open_source`."""

    format: str
    path: str | None = None
    images: str | None = None
    name: str | None = None
    split: str = "train"
    prompts: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    streaming: bool = False

    @property
    def called(self) -> str:
        """Its name."""
        return self.name or name_of(self.format, self.path)

    def open(self) -> Source:
        """See `open_source`."""
        return open_source(**asdict(self))


class ShardSize(NamedTuple):
    """How large a shard is; one of the two is 0."""

    megabytes: int
    rows: int


class Task(NamedTuple):
    """One shard."""

    number: int
    input: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """What is to be done; two plans of the same sources and options are equal.

    Args:
        inputs: the arguments of each source.
        states: size and time of the file of each, and how many samples it has; -1: not known, it is streamed.
        check: whether images are decoded.
        size: of a shard, as it was asked for.
        rows: of a shard of each source.
    """

    inputs: list[dict[str, Any]]
    states: list[list[int]]
    check: bool
    size: list[int]
    rows: list[int]

    def same_as(self, other: Plan) -> bool:
        """Whether both do the same; rows are an estimate, and those of the first count."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("inputs", "states", "check", "size"))
        return all(json.dumps(one) == json.dumps(two) for one, two in pairs)

    def tasks(self) -> list[Task]:
        """The shards of all sources that are not streamed."""
        found: list[Task] = []
        for number, (state, rows) in enumerate(zip(self.states, self.rows, strict=True)):
            for start in range(0, max(0, state[0]), rows):
                found.append(Task(len(found), number, start, min(start + rows, state[0])))
        return found


def parse_size(text: str) -> ShardSize:
    """Read `256MB` or `10000rows`.

    Raises:
        InputError: it is neither.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or not int(found[1]):
        raise InputError(f"The shard size {text!r} is not understood: give it as 256MB or as 10000rows.")
    number, unit = int(found[1]), found[2].lower()
    return ShardSize(0, number) if unit == "rows" else ShardSize(number * (1000 if unit == "gb" else 1), 0)


def plan(inputs: Sequence[Input], sources: Sequence[Source | None], *, size: ShardSize, check: bool) -> Plan:
    """Lay out a conversion.

    Args:
        inputs: see `Input`.
        sources: the same, opened; None for a streamed one.
        size: of a shard.
        check: whether images are decoded.

    Raises:
        InputError: two sources of one name.
    """
    names = [one.called for one in inputs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"Two sources are named {twice!r}: give each a name of its own, which its ids begin with.")
    return Plan(
        inputs=[asdict(one) | {"prompts": list(one.prompts), "name": one.called} for one in inputs],
        states=[_state(one, source) for one, source in zip(inputs, sources, strict=True)],
        check=check,
        size=list(size),
        rows=[size.rows or _rows_of(source, size.megabytes) for source in sources],
    )


def kept_plan(folder: Path, fresh: Plan) -> Plan:
    """The plan of a conversion that has begun, which must be the same; or the fresh one, written down.

    Raises:
        InputError: another conversion has begun in the folder, or it is in use for something else.
        DataError: it cannot be written.
    """
    path = folder / PLAN
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
        if text is None:
            if folder.is_dir() and any(one.name != ".lock" for one in folder.iterdir()):
                raise InputError(
                    f"The folder {folder} holds something else: give one that is empty, or does not exist."
                )
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(fresh))
            return fresh
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        before = Plan(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: remove the folder {folder}, and convert again.") from error
    if not before.same_as(fresh):
        raise InputError(
            f"The folder {folder} holds a conversion of other sources, or with other options: go on with those, or "
            "give another folder."
        )
    return before


def write_json(path: Path, content: Any) -> None:
    """Write beside the target and rename, so that what is there is whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def unwritable(folder: Path, error: OSError) -> DataError:
    """What to say when the disk does not take it."""
    return DataError(
        f"The shards cannot be written to {folder} ({(error.strerror or 'unknown reason').lower()}): make room or give "
        "another folder, and run the same command again; what is finished is kept."
    )


def _state(input: Input, source: Source | None) -> list[int]:
    state = [-1 if source is None else len(source)]
    path = Path(input.path or "")
    if path.is_file():
        status = path.stat()
        state += [status.st_size, status.st_mtime_ns]
    return state


def _rows_of(source: Source | None, megabytes: int) -> int:
    """How many samples make so many megabytes, by the mean of some of them."""
    if source is None or not len(source):
        return 0
    dice = random.Random(0)
    sizes: list[int] = []
    for number in dice.sample(range(len(source)), min(TRIED, len(source))):
        try:
            sample = source[number]
            sizes.append(sum(map(_bytes_of, sample.images)) + source.length(number) + 64)
        except (DataError, OSError):  # it will be skipped
            continue
    mean = sum(sizes) / len(sizes) if sizes else 1000
    return max(1, int(megabytes * 1_000_000 / mean))


def _bytes_of(image: str | bytes) -> int:
    return len(image) if isinstance(image, bytes) else os.path.getsize(image)
