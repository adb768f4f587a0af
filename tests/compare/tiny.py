"""A tiny LLaVA made of tiny parts, and batches for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaProcessor

from tests.helpers import (
    IMAGE_SIZE,
    PAD,
    TEMPLATE,
    TEXT_VOCABULARY,
    tiny_llm,
    tiny_processor,
    tiny_tokenizer,
    tiny_vision,
)
from vlora.compare.baseline import build_baseline, expand_images
from vlora.compare.llava import LlavaForConditionalGeneration
from vlora.model.efficientnet_lite import image_processor
from vlora.model.loss import IGNORED

ROWS = TEXT_VOCABULARY + 3


def tiny_baseline(
    family: str = "llama", vision: str = "clip", *, seed: int = 0, **fields: Any
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Random weights, and visual tokens as large as those of words."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, processor = build_baseline(
            causal_lm=tiny_llm(family, vocab_size=ROWS, max_position_embeddings=256, **fields),
            vision_tower=tiny_vision(vision),
            image_processor=image_processor(IMAGE_SIZE)
            if vision == "efficientnet"
            else tiny_processor().image_processor,
            tokenizer=tiny_tokenizer(),
            chat_template=TEMPLATE,
        )
    return model, processor


def batch_of(
    model: LlavaForConditionalGeneration, texts: Sequence[tuple[Sequence[int], int]], *, side: str = "right"
) -> dict[str, Tensor]:
    """Texts with -1 for each image, and how many of their last tokens are supervised, as a padded batch."""
    image: int = model.config.image_token_id
    rows = []
    for text, supervised in texts:
        ids = [image if token < 0 else token for token in text]
        labels = [IGNORED] * (len(ids) - supervised) + ids[len(ids) - supervised :]
        rows.append(expand_images(ids, labels, image_token_id=image, tokens_per_image=model.config.image_seq_length))
    length = max(len(ids) for ids, _ in rows)
    batch = {
        "input_ids": torch.full((len(rows), length), PAD),
        "labels": torch.full((len(rows), length), IGNORED),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
    }
    for row, (ids, labels) in enumerate(rows):
        where = slice(length - len(ids), None) if side == "left" else slice(len(ids))
        batch["input_ids"][row, where] = torch.tensor(ids)
        batch["labels"][row, where] = torch.tensor(labels)
        batch["attention_mask"][row, where] = 1
    return batch
