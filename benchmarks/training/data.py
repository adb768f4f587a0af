"""What is trained on: made-up captions, and the looks of a round, batched by length or at random, per look or per row.

The captions have the lengths of web captions written by a language model: a log-normal number of words with median 20,
cut to 8 ... 40, out of a seeded list of common words. The user shows the image and says nothing, as our formats and the
authors' have it where nothing else is asked for. The images are JPEG files of 320 x 240, so that decoding is
paid.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlora.data.prompts import supervised_conversation
from vlora.data.sample import Message, Sample, Source
from vlora.train.loader import MicroBatches, World, first_failure, loader
from vlora.train.looks import Collator, Looks, Task, hand
from vlora.train.order import Order, Pick, Steps

WINDOW = 32
"""Steps that a run sorts by length together."""

PROMPT = "<image>"
WORDS = (
    "a an the and with near under over behind beside in on at of two three several many small large old young tall "
    "red green blue white black yellow brown wooden stone empty busy quiet bright dark man woman child boy girl dog "
    "cat horse bird cow sheep car bus train bicycle boat plane street road bridge river lake sea beach mountain "
    "hill forest tree flower grass field garden park house building church window door roof wall kitchen table "
    "chair bed lamp clock book cup plate bowl bread fruit apple banana pizza cake hat shirt shoes umbrella ball "
    "kite sky cloud sun snow rain standing sitting walking running holding riding looking eating playing waiting "
    "parked covered filled surrounded"
)


class Captions:
    """A source of images with a caption each, in memory.

    Args:
        samples: how many.
        seed: decides all of it.
        spread: standard deviation of the logarithm of a caption's words.
    """

    name = "captions"
    augment = False

    def __init__(self, samples: int, *, seed: int = 0, spread: float = 0.4) -> None:
        dice = np.random.default_rng(seed)
        words = WORDS.split()
        lengths = np.exp(dice.normal(np.log(20), spread, samples)).round().clip(8, 40).astype(int)
        self.texts = [" ".join(dice.choice(words, length)).capitalize() + "." for length in lengths]
        self.images = [_jpeg(dice) for _ in range(samples)]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Sample:
        conversation = (Message("user", PROMPT), Message("assistant", self.texts[index]))
        return Sample(str(index), (self.images[index],), (conversation,), f"made-up caption {index}")

    @property
    def blocks(self) -> Sequence[int]:
        """All in one."""
        return [len(self)]

    def length(self, index: int) -> int:
        """Characters."""
        return len(self.texts[index])


def _jpeg(dice: np.random.Generator) -> bytes:
    coarse = Image.fromarray(dice.integers(0, 256, (15, 20, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((320, 240), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


class OneByOne:
    """A source whose every conversation is a sample of its own, with its own image: how the recipe reads.

    Args:
        source: the source.
    """

    augment = False

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, source.name
        self.numbers = [(index, n) for index in range(len(source)) for n in range(len(source[index].conversations))]
        self.position = {number: position for position, number in enumerate(self.numbers)}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> Sample:
        index, number = self.numbers[position]
        sample = self.source[index]
        return Sample(f"{sample.id}.{number}", sample.images, (sample.conversations[number],), sample.where)

    @property
    def blocks(self) -> Sequence[int]:
        """All in one."""
        return [len(self)]

    def length(self, index: int) -> int:
        """Of the sample it is from."""
        return self.source.length(self.numbers[index][0])


@dataclass(frozen=True)
class Rounds:
    """The steps of every round, drawn for every way of training from the same window of 32 steps.

    A run sorts the looks of 32 steps by length and cuts them into batches, which come in any order. A round takes some
    of these batches, or, for the recipe, as many random batches of the same looks: of a whole window all ways would
    read the same looks, of a part of it looks of other lengths, which is why times are counted by the text token.

    Args:
        source: of the looks.
        looks: a step.
        steps: a round.
        per_look: conversations of a look.
        seed: of the order.
    """

    source: Source
    looks: int
    steps: int
    per_look: int
    seed: int = 0

    def by_length(self, processor: Any, number: int, device: torch.device, *, collate: Any = None) -> Iterator[Any]:
        """The micro-batches of a round as `vlora train` makes them."""
        return self._ours(processor, number, device, by_length=True, collate=collate)

    def at_random(self, processor: Any, number: int, device: torch.device) -> Iterator[Any]:
        """The same with `data.batches: random`."""
        return self._ours(processor, number, device, by_length=False)

    def one_by_one(self, processor: Any, rows: OneByOne, number: int, device: torch.device) -> Iterator[Any]:
        """Texts of the same window in random batches of as many rows, an image read and perceived for each."""
        texts = [
            rows.position[pick.number, chosen]
            for pick in self._window()
            for chosen in hand(pick, len(self.source[pick.number].conversations), size=self.per_look, seed=self.seed)
        ]
        texts = [texts[place] for place in np.random.default_rng(self.seed).permutation(len(texts))]
        size = self.looks * len(texts) // len(self._window())
        first = number * self.steps
        cut = [texts[step * size : (step + 1) * size] for step in range(first, first + self.steps)]
        tasks = [[Task(Pick(0, text, 0), 1 / len(batch)) for text in batch] for batch in cut]
        looks = Looks([rows], processor, per_look=1, max_tokens=None, seed=self.seed)
        return _usable(loader(looks, tasks, _collate(processor), workers=0, device=device))  # type: ignore[arg-type]

    def tokens_per_text(self, processor: Any) -> float:
        """The mean over the window."""
        lengths = [
            len(supervised_conversation(sample.conversations[chosen], processor, len(sample.images))[0])
            for pick in self._window()
            for sample in (self.source[pick.number],)
            for chosen in hand(pick, len(sample.conversations), size=self.per_look, seed=self.seed)
        ]
        return sum(lengths) / len(lengths)

    def _ours(
        self, processor: Any, number: int, device: torch.device, *, by_length: bool, collate: Any = None
    ) -> Iterator[Any]:
        looks = Looks([self.source], processor, per_look=self.per_look, max_tokens=None, seed=self.seed)
        steps = Steps(self._order(), size=self.looks, length=looks.length if by_length else None, window=WINDOW)
        first = number * self.steps
        batches = MicroBatches(steps, first=first, last=first + self.steps, world=World(1, 0, 1))
        return _usable(loader(looks, batches, collate or _collate(processor), workers=0, device=device))

    def _order(self) -> Order:
        return Order([self.source.blocks], weights=None, seed=self.seed, together=64)

    def _window(self) -> list[Pick]:
        order = self._order()
        return [order[place] for place in range(min(WINDOW * self.looks, order.samples))]


def _collate(processor: Any) -> Collator:
    return Collator(processor.tokenizer.pad_token_id)


def _usable(batches: Any) -> Iterator[Any]:
    for batch in batches:
        first_failure([batch])
        yield batch
