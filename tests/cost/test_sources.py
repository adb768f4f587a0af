"""From what a user names to a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.cli.tiny import save_whole
from tests.helpers import tiny_llm_config
from vlora.cost.sources import find, is_checkpoint, text_part, vision_part
from vlora.errors import CheckpointError, ModelNotFound, UnsupportedModel
from vlora.model import VLoRAConfig

# As Vicuna's own config.json is written: fields of training, of old versions, and of none of transformers' classes.
VICUNA = {
    "_name_or_path": "vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "vocab_size": 32000,
}


def write(path: Path, fields: Any) -> Path:
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields), encoding="utf-8")
    return path


def test_file_and_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "config.json", VICUNA)
    for source in (file, tmp_path, str(tmp_path)):
        found = find(source)
        assert (found.name, found.config.model_type, found.config.intermediate_size) == (str(source), "llama", 11008)


def test_a_configuration_is_taken_as_it_is() -> None:
    config = tiny_llm_config("qwen2")
    assert find(config).config is config
    assert find(config).name == "qwen2"


def test_parts_of_a_visual_token_model(tmp_path: Path) -> None:
    llava = AutoConfig.for_model("llava", text_config=VICUNA, vision_config={"model_type": "siglip_vision_model"})
    config = find(write(tmp_path / "llava.json", llava.to_dict())).config
    assert (text_part(config).model_type, vision_part(config).model_type) == ("llama", "siglip_vision_model")
    assert text_part(config).hidden_size == 4096


def test_nano() -> None:
    found = find("nano")
    assert is_checkpoint(found)
    assert isinstance(found.config, VLoRAConfig)
    assert text_part(found.config).hidden_size == 576
    assert vision_part(found.config).model_type == "efficientnet_lite"


def test_checkpoint_folder(tmp_path: Path) -> None:
    folder = save_whole(tmp_path / "model")
    assert is_checkpoint(find(folder))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vicuna7b", "did you mean vicuna-7b"),
        ("lmsys/vicuna-7b-v2", "did you mean vicuna-7b"),
        ("zzz", r"give a config\.json.*one of clip-vit-b-16, .*vicuna-7b"),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    with pytest.raises(ModelNotFound, match=hint):
        find(name)


def test_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"is a folder without a config\.json"):
        find(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"model_type": 3}', "\x00"])
def test_damaged_config(tmp_path: Path, content: str) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        find(write(tmp_path / "config.json", content))


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        find(path)


def test_unknown_type(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="'perceiver9', which transformers does not know"):
        find(write(tmp_path / "config.json", {"model_type": "perceiver9"}))


def test_field_of_a_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be used"):
        find(write(tmp_path / "config.json", VICUNA | {"hidden_size": "wide"}))


def test_wrong_generator(tmp_path: Path) -> None:
    fields = {"model_type": "vlora", "text_config": VICUNA, "generator_config": {"rank": 0}}
    with pytest.raises(CheckpointError, match="rank: 0 must be at least 1"):
        find(write(tmp_path / "config.json", fields))
