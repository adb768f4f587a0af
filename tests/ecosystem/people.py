"""What a user has: a folder with a model and a processor, chats, and a slow way to check an answer by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.helpers import (
    TEXT_VOCABULARY,
    add_noise,
    picture,
    tiny_generator_config,
    tiny_llm,
    tiny_processor,
    tiny_vision,
)
from vlora.model import VLoRAForConditionalGeneration
from vlora.model.assemble import assemble

NEW = 6  # tokens of an answer
LLM = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"  # every linear layer of the language model, none of the others
Chat = list[dict[str, Any]]


def save_folder(path: Path, family: str = "llama", **generator: Any) -> Path:
    """Write a full checkpoint with its processor, of a model whose images matter."""
    torch.manual_seed(0)
    model = assemble(
        causal_lm=tiny_llm(family, vocab_size=TEXT_VOCABULARY, max_position_embeddings=256),
        vision_tower=tiny_vision(),
        generator=tiny_generator_config(**({"targets": ("q", "v", "down", "mlp")} | generator)),
    )
    add_noise(model, 0.2)
    model.save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


def chat(text: str, *seeds: int, answer: str | None = None) -> Chat:
    """A user's turn with a picture for each seed, and the assistant's if it is given."""
    pictures = [{"type": "image", "image": picture(seed)} for seed in seeds]
    turns: Chat = [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns


# Texts of different lengths; one picture, none, two.
CHATS: list[Chat] = [chat("what is this", 1), chat("is this a thing, and what colour is it"), chat("which", 2, 3)]


def prepare(processor: Any, chats: Sequence[Chat], *, generate: bool = True, **options: Any) -> Any:
    """Chats -> a padded batch."""
    return processor.apply_chat_template(
        list(chats),
        add_generation_prompt=generate,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt", "padding": True, **options},
    )


@torch.no_grad()
def greedy_by_hand(model: VLoRAForConditionalGeneration, processor: Any, one: Chat, new: int = NEW) -> Tensor:
    """One chat, one whole forward pass for each new token, no cache, no `generate`."""
    batch = prepare(processor, [one])
    ids, length = batch["input_ids"], batch["input_ids"].shape[1]
    images = {name: batch[name] for name in ("pixel_values", "image_index") if name in batch}
    for _ in range(new):
        logits = model(input_ids=ids, **images, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, length:]


@torch.no_grad()
def alone(model: VLoRAForConditionalGeneration, processor: Any, one: Chat, **options: Any) -> Tensor:
    """What `generate` writes for one chat in a batch of its own, `[sequences, new]`."""
    batch = prepare(processor, [one])
    return model.generate(**batch, max_new_tokens=NEW, **options)[:, batch["input_ids"].shape[1] :]
