"""What the sources of all formats share: a name, blocks of even size, and the first so many of another source."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from ..sample import Sample, Source

BLOCK = 65_536
"""Samples that count as lying together where the format has no files of its own for them."""


class Rows(ABC):
    """A source of numbered samples; what is opened to read one is closed again, so it may be forked and pickled.

    Args:
        name: unique in a mixture.
        augment: whether images may be changed at random.
    """

    def __init__(self, name: str, *, augment: bool = False) -> None:
        self.name, self.augment = name, augment

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Sample:
        """The sample of a number that there is.

        Raises:
            DataError: it cannot be used.
        """

    @abstractmethod
    def length(self, index: int) -> int:
        """Characters of the longest conversation, without reading an image; 0 for a sample that cannot be used."""

    @property
    def repeats(self) -> int:
        """Samples whose id another one had before; they were given ids of their own."""
        return 0

    def __getitem__(self, index: int) -> Sample:
        return self.read(checked(index, len(self)))

    @property
    def blocks(self) -> Sequence[int]:
        """See `Source`."""
        return even_blocks(len(self))


class Chain(Rows):
    """Several files of one format as one source; the ids of each begin with the file's name.

    Args:
        parts: the sources of the files, with unlike names.
        name: of them all.
        augment: see `Rows`.
    """

    def __init__(self, parts: Sequence[Rows], *, name: str, augment: bool) -> None:
        super().__init__(name, augment=augment)
        self.parts = list(parts)
        self._ends = list(accumulate(len(one) for one in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def blocks(self) -> Sequence[int]:
        """See `Source`."""
        return [block for one in self.parts for block in one.blocks]

    @property
    def repeats(self) -> int:
        """See `Rows`."""
        return sum(one.repeats for one in self.parts)

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        part, row = self._place(index)
        found = part.read(row)
        return replace(found, id=f"{part.name}/{found.id}")

    def length(self, index: int) -> int:
        """See `Rows`."""
        part, row = self._place(index)
        return part.length(row)

    def _place(self, index: int) -> tuple[Rows, int]:
        part = bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)


class First(Rows):
    """The first samples of a source.

    Args:
        source: of all of them.
        limit: how many.
    """

    def __init__(self, source: Source, limit: int) -> None:
        super().__init__(source.name, augment=source.augment)
        self.source, self.limit = source, min(limit, len(source))

    def __len__(self) -> int:
        return self.limit

    @property
    def repeats(self) -> int:
        """See `Rows`; of the whole source."""
        return getattr(self.source, "repeats", 0)

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        return self.source[index]

    def length(self, index: int) -> int:
        """See `Rows`."""
        return self.source.length(index)

    @property
    def blocks(self) -> Sequence[int]:
        """See `Source`."""
        kept: list[int] = []
        left = self.limit
        for block in self.source.blocks:
            if left <= 0:
                break
            kept.append(min(block, left))
            left -= block
        return kept


def even_blocks(count: int, size: int = BLOCK) -> Sequence[int]:
    """Blocks of one size, and a rest."""
    whole, rest = divmod(count, size)
    return [size] * whole + ([rest] if rest else [])


def checked(index: int, count: int) -> int:
    """An index that there is; negative ones count from the end.

    Raises:
        IndexError: there is none; loops over a source end by it.
    """
    number = operator.index(index)
    if not -count <= number < count:
        raise IndexError(f"there is no sample {number} of {count}")
    return number % count
