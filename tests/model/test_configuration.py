"""Configurations: what is refused, and what JSON gives back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig

from tests.helpers import tiny_llm_config
from vlora.errors import ConfigError
from vlora.model import GeneratorConfig, VLoRAConfig


def test_all_wrong_fields_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        GeneratorConfig(
            targets=("q", "x", "y"), queries="shared", rank=0, layer_step=0, depth=0, dim=10, heads=3, static_rank=-1
        )
    error = caught.value
    assert [problem.split(":")[0] for problem in error.problems] == [
        "targets",
        "queries",
        "layer_step",
        "rank",
        "depth",
        "static_rank",
        "heads",
    ]
    assert "8 wrong" not in str(error)
    assert "7 wrong fields" in str(error)
    assert "x, y is not a target; choose from q k v o gate up down mlp" in str(error)
    assert "'shared' is not one of separate, joint" in str(error)
    assert "3 does not divide dim 10" in str(error)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"targets": ()}, "targets: nothing is not a target"),
        ({"heads": 0}, "heads: 0 must be at least 1"),
        ({"dim": 0}, "dim: 0 must be at least 1"),
        ({"static_rank": -1}, "static_rank: -1 must be 0 or more"),
        ({"mlp_ratio": 0.0}, "mlp_ratio: 0.0 must be above 0"),
        ({"head": "dictionary", "dictionary_size": 63}, "dictionary_size: 63 is below rank 64"),
        ({"head": "mlp"}, "head: 'mlp' is not one of linear, dictionary"),
        ({"factors": "ba"}, "factors: 'ba' is not one of a, b, ab"),
    ],
)
def test_a_wrong_field_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        GeneratorConfig(**fields)


def test_the_outer_configuration_lists_its_fields_too() -> None:
    with pytest.raises(ConfigError, match="2 wrong fields") as caught:
        VLoRAConfig(image_placeholder="keep", vision_feature_select_strategy="patch")
    assert "'keep' is not one of erase, mask" in str(caught.value)
    assert "'patch' is not one of default, full" in str(caught.value)


def test_targets_have_one_order() -> None:
    one, two = GeneratorConfig(targets=["mlp", "q", "v"]), GeneratorConfig(targets=("v", "mlp", "q", "q"))
    assert one.targets == two.targets == ("q", "v", "mlp")
    assert GeneratorConfig(layers=[7, 3, 3]).layers == (3, 7)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"layers": (3, 1), "targets": ("mlp", "gate"), "rank": 2, "alpha": 1.5, "dim": 32, "heads": 4},
        {"layers": None, "layer_step": 2, "queries": "joint", "static_rank": 3, "norms": True, "depth": 1},
        {"head": "dictionary", "dictionary_size": 70, "factors": "ab"},
    ],
)
def test_a_file_gives_back_what_was_saved(fields: dict[str, Any], tmp_path: Path) -> None:
    config = VLoRAConfig(
        vision_config=CLIPVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
        text_config=tiny_llm_config("qwen3"),
        generator_config=GeneratorConfig(**fields),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_placeholder="mask",
        image_token_id=7,
    )
    config.save_pretrained(tmp_path)
    for again in (VLoRAConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(again) is VLoRAConfig
        assert again.to_dict() | {"_name_or_path": ""} == config.to_dict()
        assert again.generator_config == config.generator_config
        assert type(again.generator_config.targets) is tuple
        assert again.generator_config.layers == config.generator_config.layers
        assert type(again.vision_config) is CLIPVisionConfig
        assert again.text_config.model_type == "qwen3"
    json.loads((tmp_path / "config.json").read_text())  # it is JSON, with no NaN in it


def test_parts_may_be_dicts_or_left_out() -> None:
    config = VLoRAConfig(
        text_config={"model_type": "qwen2", "hidden_size": 48, "tie_word_embeddings": True},
        generator_config={"rank": 8},
    )
    assert config.text_config.model_type == "qwen2"
    assert config.tie_word_embeddings
    assert config.generator_config.rank == 8
    default = VLoRAConfig()
    assert default.vision_config.model_type == "clip_vision_model"
    assert default.text_config.model_type == "llama"
    assert default.generator_config == GeneratorConfig()


def test_the_attention_of_loaded_parts_is_kept() -> None:
    vision, text = CLIPVisionConfig(attn_implementation="eager"), LlamaConfig(attn_implementation="sdpa")
    config = VLoRAConfig(vision_config=vision, text_config=text)
    assert config.vision_config._attn_implementation == "eager"
    assert config.text_config._attn_implementation == "sdpa"
    both = VLoRAConfig(vision_config=vision, text_config=text, attn_implementation="eager")
    assert both.text_config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("fields", "blocks", "expected"),
    [
        ({}, 32, (3, 7, 11, 15, 19, 23, 27, 31)),
        ({}, 30, (3, 7, 11, 15, 19, 23, 27)),
        ({"layer_step": 1}, 3, (0, 1, 2)),
        ({"layers": (5, 0)}, 6, (0, 5)),
    ],
)
def test_worn_layers(fields: dict[str, Any], blocks: int, expected: tuple[int, ...]) -> None:
    assert GeneratorConfig(**fields).worn_layers(blocks) == expected


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"layers": (0, 4, 9)}, "4, 9"),
        ({"layers": (-1,)}, "-1"),
        ({"layer_step": 5}, "every 5th"),
        ({"layers": ()}, "none"),
    ],
)
def test_layers_that_are_not_there_are_refused(fields: dict[str, Any], given: str) -> None:
    with pytest.raises(ConfigError, match=f"layers: {given} asked of a language model with layers 0 to 3"):
        GeneratorConfig(**fields).worn_layers(4)
