"""Several texts about one image, read in one row: what they begin with is computed once, and padding hardly at all.

    rows of a batch      [ header | question 1 | pad ]        one row     [ header | question 1 | question 2 ]
                         [ header | question 2      ]   ─►    each text sees the header and itself only

Each text has the positions, and sees the tokens, that it has in a row of its own, so that the outcome is the same.
Where an image is tokens, they are part of the header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .loss import IGNORED

KERNELS = ("sdpa", "eager")
"""Attention that takes any mask."""

_WORTH = 0.9
"""Of the tokens of the batch, what must be left at the most for packing to pay."""


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch lie in rows that hold all texts of an image.

    Args:
        source: `[images, width]`, the number of each packed token in the batch, counted through its rows; any number
            where a packed row is padded.
        place: `[rows, text]`, the number of each token of the batch among the packed ones, counted likewise; any
            number for a token that is not read.
        position_ids: `[images, width]`, of a token in its text.
        segment: `[images, width]`, 0 for what is common, then 1 for the first text of an image, and so on; -1 for
            padding.
    """

    source: Tensor
    place: Tensor
    position_ids: Tensor
    segment: Tensor

    def pack(self, tokens: Tensor) -> Tensor:
        """`[rows, text, ...]` -> `[images, width, ...]`."""
        return tokens.flatten(0, 1)[self.source]

    def unpack(self, packed: Tensor) -> Tensor:
        """`[images, width, ...]` -> `[rows, text, ...]`; what was not read has values without a meaning."""
        flat = packed.flatten(0, 1).index_select(0, self.place.flatten())
        return flat.view(*self.place.shape, *packed.shape[2:])

    def mask(self, text_config: Any, dtype: torch.dtype) -> Tensor:
        """`[images, 1, width, width]`: what each token sees, as the attention kernel of the configuration takes it."""
        own, other = self.segment[:, :, None], self.segment[:, None]
        number = torch.arange(self.segment.shape[1], device=self.segment.device)
        sees = ((own == other) | (other == 0)) & (number[:, None] >= number)
        if text_config._attn_implementation == "eager":
            return torch.zeros_like(sees, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[:, None]
        return sees[:, None]


def packing_of(
    text_config: Any, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor, *, images: int
) -> Packing | None:
    """How to pack a batch; None where it cannot be, or is not worth it.

    Args:
        text_config: of the language model.
        input_ids: `[rows, text]`, padded on the right, in the order of the images, as many for each.
        attention_mask: `[rows, text]`.
        labels: `[rows, text]`; what comes after a text's last one is not read.
        images: how many there are, one in each row.
    """
    rows, text = input_ids.shape
    window = getattr(text_config, "sliding_window", None)
    if not images or rows <= images or rows % images or text_config._attn_implementation not in KERNELS:
        return None
    if window is not None and text > window:
        return None
    number = torch.arange(text, device=input_ids.device)
    read = attention_mask is None or bool((attention_mask.bool() == (number < attention_mask.sum(1)[:, None])).all())
    if not read:  # padded on the left, or masked inside
        return None
    used = ((labels[:, 1:] != IGNORED) * number[1:]).amax(1)  # position t predicts the label of t + 1
    least = used.where(used > 0, text).min()
    common = int((input_ids == input_ids[0]).all(0).int().cumprod(0).sum().clamp(max=least))
    lengths = (used - common).clamp_min(0).view(images, -1)
    return _packed(number, lengths, common, most=int(_WORTH * rows * text))


def _packed(number: Tensor, lengths: Tensor, common: int, *, most: int) -> Packing | None:
    """Lay the texts of each image one after the other.

    Args:
        number: `[text]`, of a token in a row of the batch.
        lengths: `[images, texts]`, tokens of each text that are read, without the common ones.
        common: tokens that all begin with.
        most: tokens that the packed rows may have.
    """
    images, each = lengths.shape
    ends = common + lengths.cumsum(1)
    width = int(ends.max())
    if not 0 < images * width <= most:
        return None
    first = torch.arange(images, device=number.device)[:, None, None] * width
    begins = (ends - lengths)[..., None]
    column = torch.where(number < common, number, begins + number - common)  # [images, texts, text]
    read = number < common + lengths[..., None]
    place = torch.where(read, first + column, first)
    read = read & ((number >= common) | (torch.arange(each, device=number.device)[:, None] == 0))

    def laid(values: Tensor, empty: int) -> Tensor:
        filled = torch.full((images * width,), empty, device=number.device)
        return filled.index_put((place[read],), values.expand_as(place)[read]).view(images, width)

    segment = torch.where(number < common, 0, torch.arange(1, each + 1, device=number.device)[:, None])
    tokens = torch.arange(place.numel(), device=number.device).view_as(place)
    return Packing(laid(tokens, 0), place.view(images * each, -1), laid(number[None, None], 0), laid(segment[None], -1))
