"""A config whose language model is tiny and random, but real: it trains in a fraction of a second a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vlora.nano.parts import language_model_folder


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer Llama and SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("llm")
    tokenizer = AutoTokenizer.from_pretrained(language_model_folder())
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_llm: Path) -> Path:
    """A config file of 12 short steps."""
    fields = {
        "name": "tiny",
        "model": {
            "language_model": str(tiny_llm),
            "vision_options": {"image_size": 32, "stages": [3]},
            "generator": {"targets": ["v", "down"], "layers": [0, 1], "rank": 2, "dim": 16, "depth": 1, "heads": 2},
            "dtype": "float32",
        },
        "data": {"sources": [{"format": "easy-vqa", "limit": 40, "augment": True}], "questions_per_image": 2},
        "train": {
            "steps": 12,
            "images_per_step": 4,
            "log_steps": 1,
            "save_steps": 4,
            "warmup_steps": 2,
            "decay_steps": 4,
            "device": "cpu",
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path
