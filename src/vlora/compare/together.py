"""Several texts about one image, read in one row: the image's tokens are computed once, as in VLoRA they are none.

    rows of a batch      [ header | image | question 1 ]        one row     [ header | image | question 1 | question 2 ]
                         [ header | image | question 2 ]   ─►   each sees the prefix and itself only

Each text has the positions, and sees the tokens, that it has in a row of its own, so that the outcome is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model.loss import IGNORED

_KERNELS = ("sdpa", "eager")
"""Attention that takes any mask."""


def shared_prefix(model: Any, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor, *, images: int) -> int:
    """Tokens that all rows begin with, up to the end of their image; 0 where rows cannot be read together.

    Args:
        model: LLaVA without its head.
        input_ids: `[rows, text]`, padded on the right, in the order of the images, as many for each.
        attention_mask: `[rows, text]`.
        labels: `[rows, text]`.
        images: how many there are, one in each row.
    """
    config = model.config
    kernel = model.language_model.config._attn_implementation
    if not images or len(input_ids) <= images or kernel not in _KERNELS:
        return 0
    places = input_ids == config.image_token_id
    end = int(places[0].nonzero().max()) + 1 if bool(places[0].any()) else 0
    if int(places[0].sum()) != config.image_seq_length or end >= input_ids.shape[1]:
        return 0
    same = (input_ids[:, :end] == input_ids[:1, :end]).all() & ~places[:, end:].any()
    learnt = (labels[:, : end + 1] != IGNORED).any()
    padded = torch.tensor(False) if attention_mask is None else ~attention_mask[:, :end].bool().all()
    return end if bool(same & ~learnt & ~padded.to(same.device)) else 0


def read_together(
    model: Any, embeds: Tensor, attention_mask: Tensor | None, *, images: int, prefix: int, **kwargs: Any
) -> Tensor:
    """Last hidden states of what follows the prefix.

    Args:
        model: LLaVA without its head.
        embeds: `[rows, text, hidden]`, rows in the order of the images.
        attention_mask: `[rows, text]`.
        images: how many there are.
        prefix: of `shared_prefix`.
        **kwargs: for the language model.

    Returns:
        `[rows, text - prefix, hidden]`.
    """
    rows, text, width = embeds.shape
    each, rest = rows // images, text - prefix
    begin = embeds.view(images, each, text, width)[:, 0, :prefix]
    row = torch.cat([begin, embeds[:, prefix:].reshape(images, each * rest, width)], dim=1)
    number = torch.arange(each * rest, device=embeds.device)
    positions = torch.cat([torch.arange(prefix, device=embeds.device), prefix + number % rest])
    sees = _sees(prefix, each, rest, embeds.device).expand(images, -1, -1)
    if attention_mask is not None:
        kept = attention_mask[:, prefix:].reshape(images, 1, each * rest).bool()
        sees = sees & torch.cat([kept.new_ones(images, 1, prefix), kept], dim=2)
    mask = sees[:, None]
    if model.language_model.config._attn_implementation == "eager":
        mask = torch.zeros_like(mask, dtype=embeds.dtype).masked_fill(~mask, torch.finfo(embeds.dtype).min)
    outputs = model.language_model(
        inputs_embeds=row, attention_mask=mask, position_ids=positions.expand(images, -1), **kwargs
    )
    return outputs.last_hidden_state[:, prefix:].reshape(rows, rest, width)


def _sees(prefix: int, each: int, rest: int, device: torch.device) -> Tensor:
    """`[1, length, length]`: whether the one token sees the other; the prefix is text 0."""
    text = torch.cat([torch.zeros(prefix, device=device), 1 + torch.arange(each * rest, device=device) // rest])
    place = torch.arange(prefix + each * rest, device=device)
    before = place[:, None] >= place[None]
    return (before & ((text[:, None] == text[None]) | (text[None] == 0)))[None]
