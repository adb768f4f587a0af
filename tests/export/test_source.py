"""What a checkpoint is made of, in whole or in two parts; and what is wrong with it, in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from tests.export.checkpoints import (
    OFFICIAL,
    PROJECTOR,
    TOWER,
    as_one_file,
    change_fields,
    copy_official,
    in_two_parts,
    tensors_of,
)
from vlora.errors import CheckpointError, ConfigError, InputError, ModelNotFound, UnsupportedModel, VLoRAError
from vlora.export.source import read_source


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return copy_official(tmp_path)


def refused(kind: type[VLoRAError], checkpoint: Path, *words: str, **folders: Path | None) -> None:
    """Refused in one sentence with these words."""
    with pytest.raises(kind) as caught:
        read_source(checkpoint, folders.get("vision"), folders.get("llm"))
    message = str(caught.value)
    assert isinstance(caught.value, ConfigError) or "\n" not in message
    assert all(word in message for word in words), message


def test_the_official_checkpoint() -> None:
    source = read_source(OFFICIAL / "checkpoint", None, None)
    assert source.tensors.keys() == tensors_of(OFFICIAL / "checkpoint").keys()
    assert (source.vision, source.left_out) == (OFFICIAL / "vision", ())
    config = source.config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert config.generator_config.worn_layers(config.text_config.num_hidden_layers) == (1, 3)
    assert config.text_config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


def test_settings_of_the_language_model(checkpoint: Path) -> None:
    change_fields(checkpoint, rope_theta=5000, rope_scaling={"type": "linear", "factor": 2.0}, rms_norm_eps=1e-5)
    text = read_source(checkpoint, None, None).config.text_config
    assert text.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    assert text.rms_norm_eps == 1e-5


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"vlora_pos_num": 5}, "vlora_pos_num"),
        ({"vlora_visual_dim": 64}, "vlora_visual_dim"),
        ({"vlora_llm_dim": 128}, "vlora_llm_dim"),
        ({"vlora_llm_depth": 8}, "vlora_llm_depth"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"mm_projector_type": "mlp2x_gelu"}, "mm_projector_type"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature"),
        ({"mm_vision_select_feature": None}, "mm_vision_select_feature"),
        ({"mm_vision_select_layer": "last"}, "mm_vision_select_layer"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 66}, "hidden size"),
        ({"rope_theta": "much"}, "much"),
        ({"vlora_dim": None}, "vlora_dim"),
    ],
)
def test_wrong_settings(checkpoint: Path, fields: dict[str, Any], word: str) -> None:
    change_fields(checkpoint, **fields)
    refused(ConfigError, checkpoint, str(checkpoint / "config.json"), word)


def test_a_generator_whose_heads_do_not_divide_its_width(checkpoint: Path) -> None:
    change_fields(checkpoint, vlora_dim=40)
    refused(ConfigError, checkpoint, "heads: 16 does not divide dim 40")


@pytest.mark.parametrize("kind", ["llava", "vlora", None])
def test_a_model_of_another_kind(checkpoint: Path, kind: str | None) -> None:
    change_fields(checkpoint, model_type=kind)
    refused(UnsupportedModel, checkpoint, repr(kind), "'llava_vlora'")


def test_no_checkpoint(tmp_path: Path) -> None:
    refused(ModelNotFound, tmp_path, str(tmp_path / "config.json"))
    refused(ModelNotFound, tmp_path / "no", str(tmp_path / "no" / "config.json"))


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_a_damaged_config(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(CheckpointError, checkpoint, str(checkpoint / "config.json"))


# ---- the vision tower -------------------------------------------------------------------------------


def _without_tower(checkpoint: Path) -> None:
    kept = {key: tensor for key, tensor in tensors_of(checkpoint).items() if not key.startswith(TOWER)}
    as_one_file(checkpoint, kept)


def test_a_tower_of_its_own(checkpoint: Path) -> None:
    _without_tower(checkpoint)
    source = read_source(checkpoint, None, None)
    assert source.tensors.keys() == tensors_of(OFFICIAL / "checkpoint").keys()
    assert {one.file for key, one in source.tensors.items() if key.startswith(TOWER)} == {
        checkpoint.parent / "vision" / "model.safetensors"
    }


def test_a_tower_as_newer_transformers_write_it(checkpoint: Path) -> None:
    _without_tower(checkpoint)
    path = checkpoint.parent / "vision" / "model.safetensors"
    save_file({key.removeprefix("vision_model."): tensor for key, tensor in load_file(path).items()}, path)
    assert read_source(checkpoint, None, None).tensors.keys() == tensors_of(OFFICIAL / "checkpoint").keys()


def test_a_whole_clip(checkpoint: Path) -> None:
    """Only its vision tower is taken, and what is left out is counted."""
    _without_tower(checkpoint)
    clip = checkpoint.parent / "vision"
    whole = load_file(clip / "model.safetensors")
    text = ("text_model.embeddings.position_ids", "text_projection.weight", "visual_projection.weight", "logit_scale")
    whole |= {key: torch.zeros(1) for key in text}
    torch.save(whole, clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()
    tower = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": tower, "projection_dim": 16}))
    source = read_source(checkpoint, None, None)
    assert sorted(source.left_out) == sorted(text)
    assert source.tensors.keys() == tensors_of(OFFICIAL / "checkpoint").keys()
    assert source.config.vision_config.hidden_size == tower["hidden_size"]


def test_a_tower_given(checkpoint: Path, tmp_path: Path) -> None:
    shutil.move(checkpoint.parent / "vision", tmp_path / "clip")
    refused(InputError, checkpoint, "'./vision'", "--vision FOLDER")
    source = read_source(checkpoint, tmp_path / "clip", None)
    assert source.vision == tmp_path / "clip"
    # Nothing of this machine becomes part of the configuration.
    assert str(tmp_path) not in source.config.to_json_string()


def test_no_tower_named(checkpoint: Path) -> None:
    change_fields(checkpoint, mm_vision_tower=None)
    refused(InputError, checkpoint, "--vision FOLDER")


def test_a_tower_that_is_none(checkpoint: Path, tmp_path: Path) -> None:
    LlamaConfig().save_pretrained(tmp_path / "llama")
    refused(UnsupportedModel, checkpoint, "'llama'", "CLIP", vision=tmp_path / "llama")
    refused(ModelNotFound, checkpoint, str(tmp_path / "no" / "config.json"), vision=tmp_path / "no")
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "clip_vision_model", "hidden_size": "wide"}')
    refused(CheckpointError, checkpoint, str(tmp_path / "llama" / "config.json"), vision=tmp_path / "llama")


def test_a_tower_without_weights(checkpoint: Path) -> None:
    _without_tower(checkpoint)
    (checkpoint.parent / "vision" / "model.safetensors").unlink()
    refused(CheckpointError, checkpoint, "no weights", str(checkpoint.parent / "vision"))


# ---- two parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [PROJECTOR, "mm_projector."])
def test_two_parts(checkpoint: Path, prefix: str) -> None:
    llm = in_two_parts(checkpoint, prefix)
    source = read_source(checkpoint, None, llm)
    assert source.tensors.keys() == tensors_of(OFFICIAL / "checkpoint").keys()
    assert source.tensors[PROJECTOR + "Bs"].file == checkpoint / "mm_projector.bin"
    assert source.tensors["lm_head.weight"].file == llm / "model.safetensors"


def test_two_parts_without_the_other(checkpoint: Path) -> None:
    in_two_parts(checkpoint)
    refused(InputError, checkpoint, "mm_projector.bin", "--llm FOLDER")


def test_a_language_model_too_many(checkpoint: Path) -> None:
    llm = in_two_parts(copy_official(checkpoint / "other"))
    refused(InputError, checkpoint, "mm_projector.bin", "leave --llm out", llm=llm)


def test_two_generators(checkpoint: Path) -> None:
    torch.save({}, checkpoint / "mm_projector.bin")
    refused(CheckpointError, checkpoint, "mm_projector.bin", "take the one away")


def test_a_language_model_that_holds_a_generator(checkpoint: Path) -> None:
    llm = in_two_parts(checkpoint)
    path = llm / "model.safetensors"
    save_file(load_file(path) | {PROJECTOR + "Bs": torch.zeros(1)}, path)
    refused(CheckpointError, checkpoint, str(path), repr(PROJECTOR + "Bs"), llm=llm)


@pytest.mark.parametrize(("name", "value"), [("rms_norm_eps", 1e-5), ("rope_theta", 500.0), ("vocab_size", 361)])
def test_a_language_model_with_other_settings(checkpoint: Path, name: str, value: float) -> None:
    llm = in_two_parts(checkpoint)
    change_fields(llm, **{name: value})
    told = {"rope_theta": "rope_parameters"}.get(name, name)
    refused(ConfigError, checkpoint, str(llm / "config.json"), told, str(value), llm=llm)


def test_a_language_model_of_another_family(checkpoint: Path) -> None:
    llm = in_two_parts(checkpoint)
    change_fields(llm, model_type="mistral")
    refused(UnsupportedModel, checkpoint, "'mistral'", llm=llm)
