"""What is in a source: counts, lengths in tokens, what is learned of it, and what is wrong with it."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ..errors import DataError, ImageError
from ..model.loss import IGNORED
from .images import open_image
from .prompts import supervised_conversation
from .sample import Sample, Source

Some: TypeAlias = int | Literal["all"]
"""So many of them, chosen by a seed; or all."""

Tell: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how many."""


class Piece(NamedTuple):
    """A part of a rendered text."""

    text: str
    learned: bool


class Wrong(NamedTuple):
    """Something that cannot be used; without a place where the reason names it."""

    where: str
    reason: str


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model sees it.

    Args:
        id: of the sample.
        where: file and line.
        images: how many it is about.
        tokens: how many it has.
        pieces: its text, cut where learning begins and ends.
    """

    id: str
    where: str
    images: int
    tokens: int
    pieces: tuple[Piece, ...]


@dataclass
class Findings:
    """What was found in a source.

    Args:
        name: of the source.
        samples: in all.
        repeats: samples that came with the id of another one.
        read: samples that the numbers below are about.
        conversations: of those.
        images: of those.
        without_image: samples of text only.
        tokens: of each conversation.
        learned: tokens that are supervised, of all conversations.
        errors: samples that cannot be used.
        checked: images that were decoded.
        broken: those of them that cannot be.
        rendered: some conversations.
    """

    name: str
    samples: int
    repeats: int
    read: int = 0
    conversations: int = 0
    images: int = 0
    without_image: int = 0
    tokens: list[int] = field(default_factory=list)
    learned: int = 0
    errors: list[Wrong] = field(default_factory=list)
    checked: int = 0
    broken: list[Wrong] = field(default_factory=list)
    rendered: list[Rendered] = field(default_factory=list)

    def lengths(self) -> dict[str, int]:
        """Tokens of a conversation: least, median, 95th percentile, most."""
        if not self.tokens:
            return {}
        low, median, high, most = np.percentile(self.tokens, [0, 50, 95, 100], method="nearest")
        return {"min": int(low), "median": int(median), "p95": int(high), "max": int(most)}

    def learned_share(self) -> float:
        """Of the tokens, how many are supervised."""
        return self.learned / max(1, sum(self.tokens))


def examine(
    source: Source,
    processor: Any,
    *,
    scan: Some = "all",
    show: int = 3,
    images: Some = 0,
    max_tokens: int | None = None,
    seed: int = 0,
    tell: Tell = lambda what, done, total: None,
) -> Findings:
    """Read samples of a source, and tell what is in them.

    Args:
        source: of the samples.
        processor: with a tokenizer and a template.
        scan: samples to be read and tokenised.
        show: conversations to be rendered.
        images: samples whose images are to be decoded.
        max_tokens: where a conversation is cut.
        seed: chooses among the samples.
        tell: see `Tell`.
    """
    found = Findings(source.name, len(source), getattr(source, "repeats", 0))
    chosen = _chosen(len(source), scan, seed)
    for number, index in enumerate(chosen, 1):
        try:
            sample = source[index]
            texts = [
                supervised_conversation(one, processor, len(sample.images), max_tokens=max_tokens)
                for one in sample.conversations
            ]
        except DataError as error:
            found.errors.append(_wrong(source, index, error))
        else:
            _count(found, sample, texts, processor, show=show)
        found.read += 1
        tell("samples", number, len(chosen))
    _check_images(source, _chosen(len(source), images, seed + 1), found, tell)
    return found


def _wrong(source: Source, index: int, error: DataError) -> Wrong:
    """What is wrong with a sample; what the source itself says has its place in it."""
    try:
        where = source[index].where
    except DataError:
        where = ""
    return Wrong(where, str(error))


def _chosen(count: int, some: Some, seed: int) -> Sequence[int]:
    if some == "all" or some >= count:
        return range(count)
    return sorted(random.Random(seed).sample(range(count), some))


def _count(
    found: Findings, sample: Sample, texts: list[tuple[list[int], list[int]]], processor: Any, *, show: int
) -> None:
    found.conversations += len(texts)
    found.images += len(sample.images)
    found.without_image += not sample.images
    found.tokens += [len(ids) for ids, _ in texts]
    found.learned += sum(label != IGNORED for _, labels in texts for label in labels)
    if len(found.rendered) < show:
        ids, labels = texts[0]
        pieces = tuple(_pieces(ids, labels, processor.tokenizer))
        found.rendered.append(Rendered(sample.id, sample.where, len(sample.images), len(ids), pieces))


def _pieces(ids: list[int], labels: list[int], tokenizer: Any) -> Iterator[Piece]:
    """The text of the tokens, cut where learning begins and ends."""
    start = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or (labels[place] == IGNORED) != (labels[start] == IGNORED):
            text = tokenizer.decode(ids[start:place], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            yield Piece(text, labels[start] != IGNORED)
            start = place


def _check_images(source: Source, chosen: Sequence[int], found: Findings, tell: Tell) -> None:
    """Decode images in threads, which Pillow lets run side by side; the source is read by this one."""
    waiting: deque[tuple[str, Future[str | None]]] = deque()
    workers = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    def settle(until: int) -> None:
        while len(waiting) > until:
            where, future = waiting.popleft()
            found.checked += 1
            if (reason := future.result()) is not None:
                found.broken.append(Wrong(where, reason))

    with ThreadPoolExecutor(workers) as pool:
        for number, index in enumerate(chosen, 1):
            try:
                sample = source[index]
            except DataError:  # counted already, or not among those that were read
                continue
            for image in sample.images:
                waiting.append((sample.where, pool.submit(_reason, image)))
            settle(4 * workers)
            tell("images", number, len(chosen))
        settle(0)


def _reason(image: str | bytes) -> str | None:
    """Why an image cannot be decoded."""
    try:
        open_image(image)
    except ImageError as error:
        return str(error)
    return None
