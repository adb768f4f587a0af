"""Which samples each step reads: a pure function of the seed.

    sources ─ Order ─► one endless row of picks ─ Steps ─► step n: its looks ─ share ─► those of each process

Nothing here has a state. Step n of a run reads the same looks in every process, on every machine and after every
restart, whatever number of processes or workers reads them, so that the position in the data is the number of the
step and nothing else: no sample is seen twice in an epoch, and none is left out.

Shuffling keeps the disk in mind. An epoch shuffles the blocks (what lies together on the disk), takes so many of them
at a time, and shuffles their samples as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WHEEL = 1000
"""Positions in which a mixture gives each source its share."""


class Pick(NamedTuple):
    """A sample, and how many times it has come before."""

    source: int
    number: int
    visit: int


class Shuffled:
    """All samples of some blocks, epoch after epoch, each time in another order.

    Args:
        blocks: numbers of samples that lie together.
        seed: decides the order.
        together: blocks that are shuffled as one.
    """

    def __init__(self, blocks: Sequence[int], *, seed: Sequence[int], together: int) -> None:
        self.sizes = np.asarray([size for size in blocks if size], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)
        self.seed, self.together = tuple(seed), together
        self.samples = int(self.sizes.sum())
        # A run walks on through one epoch, a window after the other: the last of each are enough.
        self._epoch = lru_cache(2)(self._epoch_of)
        self._window = lru_cache(4)(self._window_of)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """The sample at a position of the endless row, and the number of the epoch."""
        epoch, place = divmod(position, self.samples)
        _, ends = self._epoch(epoch)
        window = int(np.searchsorted(ends, place, side="right"))
        begin = int(ends[window - 1]) if window else 0
        return int(self._window(epoch, window)[place - begin]), epoch

    def _epoch_of(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of the blocks, and where each window of blocks ends."""
        blocks = np.random.default_rng((*self.seed, epoch)).permutation(len(self.sizes))
        ends = np.cumsum(self.sizes[blocks])
        last = np.arange(self.together - 1, len(blocks) + self.together - 1, self.together).clip(max=len(blocks) - 1)
        return blocks, ends[last]

    def _window_of(self, epoch: int, window: int) -> NDArray[np.int64]:
        blocks = self._epoch(epoch)[0][window * self.together : (window + 1) * self.together]
        samples = np.concatenate([int(self.starts[b]) + np.arange(int(self.sizes[b])) for b in blocks])
        return np.random.default_rng((*self.seed, epoch, window)).permutation(samples)


class Order:
    """The endless row of picks from one or several sources.

    Without weights every sample of every source comes once an epoch. With weights a source gets its share of every
    `WHEEL` picks, and goes through its own samples epoch after epoch; an epoch of the mixture is then as many picks as
    there are samples.

    Args:
        blocks: of each source, see `Source.blocks`.
        weights: of each source, or None.
        seed: decides everything.
        together: blocks that are shuffled as one.
    """

    def __init__(
        self, blocks: Sequence[Sequence[int]], *, weights: Sequence[float] | None, seed: int, together: int
    ) -> None:
        self.samples = sum(sum(own) for own in blocks)
        self.seed = seed
        self.counts = _shares(weights) if weights else None
        if self.counts is None:
            self.begins = np.cumsum([0, *(sum(own) for own in blocks)])
            self.rows = [Shuffled([size for own in blocks for size in own], seed=(seed, 1), together=together)]
        else:
            self.rows = [Shuffled(own, seed=(seed, 1, s), together=together) for s, own in enumerate(blocks)]
        self._turn = lru_cache(4)(self._turn_of)

    def __getitem__(self, position: int) -> Pick:
        if self.counts is None:
            sample, epoch = self.rows[0][position]
            source = int(np.searchsorted(self.begins, sample, side="right")) - 1
            return Pick(source, sample - int(self.begins[source]), epoch)
        turn, slot = divmod(position, WHEEL)
        wheel, drawn = self._turn(turn)
        source = int(wheel[slot])
        sample, epoch = self.rows[source][turn * self.counts[source] + int(drawn[slot])]
        return Pick(source, sample, epoch)

    def _turn_of(self, turn: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which source each slot of the wheel draws from, and how often it has done so in this turn."""
        counts = self.counts or []
        wheel = np.repeat(np.arange(len(counts)), counts)
        wheel = np.random.default_rng((self.seed, 2, turn)).permutation(wheel)
        drawn = np.empty(WHEEL, dtype=np.int64)
        for source, count in enumerate(counts):
            drawn[wheel == source] = np.arange(count)
        return wheel, drawn


def _shares(weights: Sequence[float]) -> list[int]:
    """Whole shares of the wheel, by largest remainders; nobody gets none."""
    exact = [WHEEL * weight / sum(weights) for weight in weights]
    counts = [max(1, math.floor(share)) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda s: exact[s] - counts[s], reverse=True)
    for turn in range(abs(WHEEL - sum(counts))):
        if sum(counts) < WHEEL:
            counts[by_rest[turn % len(counts)]] += 1
        else:
            counts[max(range(len(counts)), key=counts.__getitem__)] -= 1
    return counts


class Steps:
    """The looks of every optimiser step; no step reaches over the end of an epoch, the last of one may be smaller.

    Args:
        order: of the samples.
        size: looks of a step.
        length: length of a sample's text; steps then hold samples of about one length. None leaves them as they come.
        window: steps that are sorted by length together.
    """

    def __init__(
        self, order: Order, *, size: int, length: Callable[[Pick], int] | None = None, window: int = 32
    ) -> None:
        self.order, self.size, self.length, self.window = order, size, length, window
        self.per_epoch = math.ceil(order.samples / size)
        self._window = lru_cache(2)(self._window_of)

    def __getitem__(self, step: int) -> list[Pick]:
        """The looks of a step, counted from 0; by length, if there is one."""
        epoch, within = divmod(step, self.per_epoch)
        window, place = divmod(within, self.window)
        return self._window(epoch, window)[place]

    def looks_before(self, step: int) -> int:
        """Looks of all steps before this one, if no step of a later epoch is among them: an epoch's last is smaller."""
        epoch, within = divmod(step, self.per_epoch)
        if not within:
            return epoch * self.order.samples
        window, place = divmod(within, self.window)
        before = window * self.window * self.size
        sizes = (len(picks) for picks in self._window(epoch, window)[:place])
        return epoch * self.order.samples + before + sum(sizes)

    def _window_of(self, epoch: int, window: int) -> list[list[Pick]]:
        begin = window * self.window * self.size
        end = min(begin + self.window * self.size, self.order.samples)
        picks = [self.order[epoch * self.order.samples + place] for place in range(begin, end)]
        if self.length is not None:
            length = {pick: self.length(pick) for pick in picks}
            picks.sort(key=lambda pick: length[pick])  # stable: what is of one length stays shuffled
        steps = [picks[place : place + self.size] for place in range(0, len(picks), self.size)]
        if self.length is not None:
            dice = np.random.default_rng((self.order.seed, 3, epoch, window))
            steps = [steps[place] for place in dice.permutation(len(steps))]
        return steps


def share(looks: Sequence[Pick], *, processes: int, accumulation: int) -> list[list[list[Pick]]]:
    """Deal the looks of a step out.

    Neighbours, which are of one length, are read at the same time by different processes, so that none waits.

    Returns:
        For each process, for each micro-batch, its looks; sizes differ by one at the most, and may be zero.
    """
    parts = processes * accumulation
    small, more = divmod(len(looks), parts)
    ends = np.cumsum([small + (part < more) for part in range(parts)])
    cut = [list(looks[end - (small + (part < more)) : end]) for part, end in enumerate(ends)]
    return [[cut[micro * processes + process] for micro in range(accumulation)] for process in range(processes)]
