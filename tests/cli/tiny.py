"""A tiny model with random weights, whole and in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from vlora.model import GeneratorConfig, VLoRAForConditionalGeneration, VLoRAProcessor
from vlora.model.assemble import assemble, parts_of, save_generator

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def tiny_language_model(seed: int = 0) -> LlamaForCausalLM:
    """Two decoder blocks of width 32."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=259,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            max_position_embeddings=512,
            initializer_range=0.3,
        )
    )


def tiny_vision() -> CLIPVisionModel:
    """4 patches of width 16."""
    torch.manual_seed(1)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )


def tiny_model(language_model: LlamaForCausalLM | None = None, **options: Any) -> VLoRAForConditionalGeneration:
    """A model that sees: its B are not zero."""
    generator = {"targets": ("q", "v", "mlp"), "layers": (0, 1), "rank": 4, "alpha": 4, "dim": 16, "depth": 1}
    model = assemble(
        causal_lm=language_model or tiny_language_model(),
        vision_tower=tiny_vision(),
        generator=GeneratorConfig(**(generator | {"heads": 2} | options)),
    )
    with torch.no_grad():
        for b in model.model.generator.b.values():
            b.normal_(std=2.0)
    return model


def tiny_processor() -> VLoRAProcessor:
    """16 x 16 pixels, a byte a token."""
    size = {"height": 16, "width": 16}
    return VLoRAProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tiny_tokenizer(),
        chat_template=TEMPLATE,
    )


def save_whole(folder: Path) -> Path:
    """Write a full checkpoint."""
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def save_in_parts(folder: Path) -> Path:
    """Write a generator-only checkpoint as `generator`, beside `llm` and `vision`."""
    language_model, processor = tiny_language_model(), tiny_processor()
    language_model.save_pretrained(folder / "llm")
    processor.tokenizer.save_pretrained(folder / "llm")
    model = tiny_model(language_model)
    model.model.vision_tower.save_pretrained(folder / "vision")
    parts = parts_of(model, language_model=str(folder / "llm"), vision=str(folder / "vision"))
    save_generator(folder / "generator", model, processor, parts)
    return folder / "generator"
