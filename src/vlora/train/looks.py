"""A look: the images of a sample, and some of the conversations about them, as tensors.

    pick ─ source ─► sample ─ decode, tokenise ─► look ─ Collator ─► micro-batch

This is what the loader's workers do. A broken image, or a sample that cannot be used, is a value like a look: it
travels to the trainer, which counts the one and stops at the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..data.images import open_image
from ..data.prompts import supervised_conversation
from ..data.sample import Conversation, Sample, Source
from ..errors import DataError, ImageError
from ..model.loss import IGNORED
from .order import Pick

REMEMBERED = 100_000
"""Conversations whose tokens are kept."""

SHORT = 200
"""Characters of a conversation that is."""


class Places(NamedTuple):
    """The places of visual tokens in a text.

    Args:
        expand: token ids and labels of a text with one token for each image -> the same with all their places.
        each: visual tokens of an image.
    """

    expand: Callable[[list[int], list[int]], tuple[list[int], list[int]]]
    each: int


class Task(NamedTuple):
    """A look that is wanted, and what it counts in the loss."""

    pick: Pick
    weight: float


@dataclass(frozen=True)
class Look:
    """Images and texts of one sample.

    Args:
        id: `source/id`.
        pixels: `[3, height, width]` of each image.
        texts: token ids and labels of each conversation.
        weight: what it counts in the loss.
        tokens: of all texts, visual tokens not counted.
    """

    id: str
    pixels: list[Tensor]
    texts: list[tuple[list[int], list[int]]]
    weight: float
    tokens: int


@dataclass(frozen=True)
class Broken:
    """A look whose image cannot be decoded."""

    id: str
    where: str
    reason: str


@dataclass(frozen=True)
class Seen:
    """What a micro-batch is made of, for those who watch.

    Args:
        ids: of its looks.
        broken: looks that are left out.
        images, rows, tokens: how many; of text tokens only, padding not counted.
        failure: why there is no batch at all.
    """

    ids: list[str] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    images: int = 0
    rows: int = 0
    tokens: int = 0
    failure: DataError | None = None


class Looks(Dataset[Look | Broken | DataError]):
    """Looks at samples of several sources.

    Args:
        sources: of the mixture.
        processor: the model's.
        per_look: conversations of one look, at the most.
        max_tokens: longer texts are cut.
        seed: of the conversations and the augmentation.
        places: gives images their visual tokens; None for a model without any.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        processor: Any,
        *,
        per_look: int,
        max_tokens: int | None,
        seed: int,
        places: Places | None = None,
    ) -> None:
        self.sources, self.processor, self.per_look = sources, processor, per_look
        self.max_tokens, self.seed, self.places = max_tokens, seed, places
        # Short questions come again and again, and rendering one takes longer than a small picture.
        self._known: dict[tuple[Conversation, int], tuple[list[int], list[int]]] = {}

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, task: Task) -> Look | Broken | DataError:
        source = self.sources[task.pick.source]
        try:
            sample = source[task.pick.number]
            texts = [self._text(sample, conversation) for conversation in self._chosen(task.pick, sample)]
        except DataError as error:
            return error
        name = f"{source.name}/{sample.id}"
        try:
            pixels = [self._pixels(image, task.pick, source.augment) for image in sample.images]
        except ImageError as error:
            return Broken(name, sample.where, str(error))
        tokens = sum(len(ids) for ids, _ in texts)
        if self.places:
            texts = [self.places.expand(*text) for text in texts]
            tokens -= len(texts) * len(pixels)
        return Look(name, pixels, texts, task.weight, tokens)

    def length(self, pick: Pick) -> int:
        """See `Source.length`."""
        return self.sources[pick.source].length(pick.number)

    def _chosen(self, pick: Pick, sample: Sample) -> list[Conversation]:
        chosen = hand(pick, len(sample.conversations), size=self.per_look, seed=self.seed)
        return [sample.conversations[number] for number in chosen]

    def _text(self, sample: Sample, conversation: Conversation) -> tuple[list[int], list[int]]:
        images = len(sample.images)
        known = self._known.get((conversation, images))
        if known:
            return known
        try:
            text = self._tokens_of(conversation, images)
        except DataError as error:
            raise DataError(f"{sample.where}: {error}") from error
        if len(self._known) < REMEMBERED and sum(len(message.text) for message in conversation) < SHORT:
            self._known[conversation, images] = text
        return text

    def _tokens_of(self, conversation: Conversation, images: int) -> tuple[list[int], list[int]]:
        most = self.max_tokens
        if self.places and most is not None:
            most -= images * (self.places.each - 1)
        return supervised_conversation(conversation, self.processor, images, max_tokens=most)

    def _pixels(self, image: str | bytes, pick: Pick, augment: bool) -> Tensor:
        picture = open_image(image)
        if augment:
            picture = augmented(picture, random.Random(f"{self.seed} {pick}"))
        return self.processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]


def hand(pick: Pick, conversations: int, *, size: int, seed: int) -> list[int]:
    """Which conversations of a sample a visit takes.

    They are dealt out in turns: in each turn all of them, in another order; its last hand, where too few are left, is
    filled up with some that were had, so that all hands are of one size.
    """
    if size >= conversations:
        return list(range(conversations))
    turn, place = divmod(pick.visit, -(-conversations // size))
    order = list(range(conversations))
    random.Random(f"{seed} {pick.source} {pick.number} {turn}").shuffle(order)
    begin = min(place * size, conversations - size)
    return order[begin : begin + size]


def augmented(image: Image.Image, dice: random.Random) -> Image.Image:
    """Mirror, shift and scale; nothing that could change a colour or a shape.

    The border colour continues outside, so that no edge appears.
    """
    if dice.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if dice.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    scale = dice.uniform(0.8, 1.1)
    width, height = image.size
    shift_x, shift_y = (dice.uniform(-0.05, 0.05) * side for side in image.size)
    corner = image.getpixel((0, 0))
    matrix = (1 / scale, 0, shift_x + width * (1 - 1 / scale) / 2, 0, 1 / scale, shift_y + height * (1 - 1 / scale) / 2)
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=corner
    )


class Collator:
    """Looks -> a micro-batch, `[rows, text]`, whose rows say which images they look at.

    Looks come by the length of their texts. Where every look has one image and as many texts as the others, rows in the
    order of the images need no index, and the weights of an image are read once for all its rows.

    Args:
        pad: token id of padding.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, items: Sequence[Look | Broken | DataError]) -> dict[str, Any]:
        """Padded on the right; `seen` says what it is made of."""
        failure = next((item for item in items if isinstance(item, DataError)), None)
        if failure is not None:
            return {"seen": Seen(failure=failure)}
        looks = [item for item in items if isinstance(item, Look)]
        broken = [item for item in items if isinstance(item, Broken)]
        looks.sort(key=lambda look: look.tokens)  # some rows at a time can then be read with hardly any padding
        texts = [text for look in looks for text in look.texts]
        batch = self._texts(texts)
        weights = [look.weight / len(look.texts) for look in looks for _ in look.texts]
        batch["loss_weights"] = torch.tensor(weights or [0.0])
        pixels = [image for look in looks for image in look.pixels]
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        if pixels and not _regular(looks):
            batch["image_index"] = _image_index(looks)
        tokens = sum(look.tokens for look in looks)
        seen = Seen([look.id for look in looks], broken, images=len(pixels), rows=len(texts), tokens=tokens)
        return batch | {"seen": seen}

    def _texts(self, texts: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        # A process without a look still takes part in the step: with a row that teaches nothing.
        rows = texts or [([self.pad], [IGNORED])]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.pad)
        labels = torch.full((len(rows), width), IGNORED)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for row, (tokens, targets) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, : len(tokens)] = torch.tensor(targets)
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _regular(looks: Sequence[Look]) -> bool:
    return all(len(look.pixels) == 1 and len(look.texts) == len(looks[0].texts) for look in looks)


def _image_index(looks: Sequence[Look]) -> Tensor:
    """`[rows, images]`: the images of each row, filled up with -1."""
    width = max(len(look.pixels) for look in looks)
    index: list[list[int]] = []
    begin = 0
    for look in looks:
        own = [*range(begin, begin + len(look.pixels)), *[-1] * (width - len(look.pixels))]
        index += [own] * len(look.texts)
        begin += len(look.pixels)
    return torch.tensor(index)
