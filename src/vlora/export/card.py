"""The model card of an adapter: what it is of, what it belongs to, how to use it."""

from __future__ import annotations

import torch

from .adapter import Adapter

_TEXT = """\
---
{base_model}library_name: peft
pipeline_tag: text-generation
tags:
- {base_tag}
- lora
- vlora
---

# {title} as a LoRA adapter

{subject} gives a language model sight of {it}, without a visual token and without a vision encoder.
VLoRA made it; it holds what the generator sees in {it}, not the pixels.

| what | |
|---|---|
{images}
| base model | {name} |
| its fingerprint | `{fingerprint}` |
| its family | {family} |
| targets | {targets} |
| layers | {layers} |
| rank, alpha | {rank}, {alpha:g} |
| precision | {dtype} |

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    llm = AutoModelForCausalLM.from_pretrained({load})
    sees = PeftModel.from_pretrained(llm, "this-folder")

On another base model its answers mean nothing; `vlora.export.peft.check_folder("this-folder", llm)` compares the
fingerprint. Ask with the chat template of the model, the question as the user's turn, and nothing in the place of {it}.
"""


def card(adapter: Adapter, dtype: torch.dtype) -> str:
    """The text of `README.md`.

    Args:
        adapter: that it describes.
        dtype: of the tensors beside it.
    """
    base, several = adapter.base, len(adapter.images) > 1
    return _TEXT.format(
        base_model=f"base_model: {base.name}\n" if base.name else "",
        base_tag=f"base_model:adapter:{base.name}" if base.name else "base_model:adapter",
        title=f"{len(adapter.images)} images" if several else "An image",
        subject="The sum of their low-rank weights" if several else "This adapter",
        it="these images" if several else "one image",
        images="\n".join(f"| image | {image.kind}, sha256 `{image.sha256}` |" for image in adapter.images)
        or "| image | not named |",
        name=", ".join(filter(None, (base.name, base.form))) or "not named",
        fingerprint=base.fingerprint,
        family=base.family,
        targets=" ".join(adapter.targets),
        layers=", ".join(map(str, adapter.layers)),
        rank=adapter.rank,
        alpha=adapter.alpha,
        dtype=str(dtype).removeprefix("torch."),
        load=f'"{base.name}"' if base.name else "...",
    )
