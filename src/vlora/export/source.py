"""What a checkpoint of the authors is made of: its configuration and its tensors. Reads headers only.

SRC   config.json (`model_type: llava_vlora`), tokenizer, and either
      whole       model*.safetensors or pytorch_model*.bin, with the vision tower or without
      two parts   mm_projector.bin, the generator; the language model is given beside it
CLIP  config.json, preprocessor_config.json, and the tower's weights if SRC has none
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig

from ..errors import CheckpointError, ConfigError, InputError, ModelNotFound, UnsupportedModel
from ..model import VLoRAConfig
from ..model.vision import feature_shape
from .authors import MODEL_TYPE, THEIR_GENERATOR, THEIR_VISION, generator_config
from .shards import Stored, has_weights, list_file, list_folder

TWO_PART_FILE = "mm_projector.bin"

_SELECT = {"patch": "default", "cls_patch": "full"}
_NOT_VISION = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
# A language model that differs in one of these is not the one that the generator was trained with.
_SAME = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "rms_norm_eps",
    "rope_parameters",
    "hidden_act",
    "tie_word_embeddings",
)


@dataclass(frozen=True)
class Source:
    """A checkpoint of the authors.

    Args:
        folder: where it is.
        fields: its `config.json`.
        vision: the folder of its CLIP.
        language_model: the folder of its language model, if it comes in two parts.
        config: ours, but for the id of the image's token.
        tensors: everything that is stored, by its name in a whole checkpoint.
        left_out: tensors of the CLIP that are not part of its vision tower.
    """

    folder: Path
    fields: Mapping[str, Any]
    vision: Path
    language_model: Path | None
    config: VLoRAConfig
    tensors: Mapping[str, Stored]
    left_out: tuple[str, ...]


def read_source(folder: Path, vision: Path | None, language_model: Path | None) -> Source:
    """Read what is small, and list what is large.

    Args:
        folder: the checkpoint.
        vision: the folder of its CLIP; None looks where its configuration says, beside it.
        language_model: the folder of its language model, if it comes in two parts.

    Raises:
        VLoRAError: whatever is wrong with it.
    """
    fields = read_json(folder / "config.json")
    if fields.get("model_type") != MODEL_TYPE:
        raise UnsupportedModel(
            f"{folder} is a model of type {fields.get('model_type')!r}: give a checkpoint of the VLoRA authors, "
            f"whose config.json says {MODEL_TYPE!r}."
        )
    vision = _vision_folder(folder, fields, vision)
    config = _config(fields, str(folder / "config.json"), _tower_config(vision))
    if language_model is not None:
        _check_same(config.text_config, language_model, folder)
    tensors, left_out = _tensors(folder, vision, language_model)
    return Source(folder, fields, vision, language_model, config, tensors, left_out)


def read_json(path: Path) -> dict[str, Any]:
    """A file with settings.

    Raises:
        ModelNotFound: there is none.
        CheckpointError: it is damaged.
    """
    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelNotFound(f"There is no {path}: give a folder that has it.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: get it again.") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds no settings: get it again.")
    return fields


def _vision_folder(folder: Path, fields: Mapping[str, Any], given: Path | None) -> Path:
    if given is not None:
        return given
    named = fields.get("mm_vision_tower")
    for beside in (folder, folder.parent):
        if isinstance(named, str) and named and (beside / named / "config.json").is_file():
            return beside / named
    raise InputError(
        f"The vision encoder of {folder} ({named!r}) is not in a folder beside it: "
        "pass --vision FOLDER, with its config.json and preprocessor_config.json."
    )


def _tower_config(folder: Path) -> CLIPVisionConfig:
    read_json(folder / "config.json")
    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and its checks raise many
        raise CheckpointError(f"{folder / 'config.json'} is damaged: get it again.") from error
    tower: Any = getattr(config, "vision_config", config)
    tower.name_or_path = ""  # a folder of this machine
    if not isinstance(tower, CLIPVisionConfig):
        raise UnsupportedModel(
            f"{folder} is a model of type {config.model_type!r}: the authors' code knows CLIP only, pass its folder."
        )
    tower.name_or_path = ""
    return tower


def _config(fields: Mapping[str, Any], source: str, tower: CLIPVisionConfig) -> VLoRAConfig:
    generator = generator_config(fields, source)
    text = _text_config(fields, source)
    select = _SELECT.get(fields.get("mm_vision_select_feature", "patch"), "")
    problems = [*_text_problems(fields, text), *_image_problems(fields)]
    if select:
        patches, vision_dim = feature_shape(tower, select=select)
        wanted = {"vlora_pos_num": patches, "vlora_visual_dim": vision_dim}
        problems += [
            f"{name}: {fields[name]!r} is not the {wanted[name]} of the vision encoder"
            for name in wanted
            if fields[name] != wanted[name]
        ]
    else:
        problems.append(f"mm_vision_select_feature: not one of {', '.join(_SELECT)}")
    if problems:
        raise ConfigError(source, problems)
    return VLoRAConfig(
        vision_config=tower,
        text_config=text,
        generator_config=generator,
        vision_feature_layer=fields.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=select,
    )


def _text_config(fields: Mapping[str, Any], source: str) -> LlamaConfig:
    known = {field.name for field in dataclasses.fields(LlamaConfig)}
    known -= {"architectures", "transformers_version", "dtype"}
    try:
        scaling = dict(fields.get("rope_scaling") or {})
        kind = scaling.pop("type", "default")  # as rope_type was called
        rope = {"rope_type": kind, "rope_theta": float(fields.get("rope_theta", 10000.0)), **scaling}
        given: dict[str, Any] = {name: value for name, value in fields.items() if name in known}
        given.setdefault("rope_parameters", rope)
        return LlamaConfig(**given)
    except Exception as error:  # transformers and its checks raise many
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(source, [lines[-1] if lines else type(error).__name__]) from error


def _text_problems(fields: Mapping[str, Any], text: LlamaConfig) -> list[str]:
    # Read again, as `LlamaConfig` has them: what is missing has become its default.
    problems = [
        f"{name}: {fields[name]!r} is not the {getattr(text, own)} of {own}"
        for name, own in (("vlora_llm_dim", "hidden_size"), ("vlora_llm_depth", "num_hidden_layers"))
        if fields.get(name, getattr(text, own)) != getattr(text, own)
    ]
    if (text.num_key_value_heads, text.head_dim) != (
        text.num_attention_heads,
        text.hidden_size // text.num_attention_heads,
    ):
        problems.append("num_key_value_heads: the authors' ΔW are square, so there must be one for each attention head")
    return problems


def _image_problems(fields: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    if fields.get("mm_projector_type", "vlora") != "vlora":
        problems.append(f"mm_projector_type: {fields['mm_projector_type']!r} is not 'vlora'")
    if fields.get("mm_use_im_start_end") or fields.get("mm_use_im_patch_token"):
        problems.append("mm_use_im_start_end, mm_use_im_patch_token: only false is understood")
    if fields.get("image_aspect_ratio") not in (None, "square", "pad"):
        problems.append(f"image_aspect_ratio: {fields['image_aspect_ratio']!r} is not one of square, pad")
    if not isinstance(fields.get("mm_vision_select_layer", -2), int):
        problems.append(f"mm_vision_select_layer: {fields['mm_vision_select_layer']!r} is not a number")
    return problems


def _check_same(text: LlamaConfig, folder: Path, generator: Path) -> None:
    """Refuse a language model of other sizes or settings than the generator was trained with."""
    fields = read_json(folder / "config.json")
    if fields.get("model_type") != "llama":
        raise UnsupportedModel(
            f"{folder} is a model of type {fields.get('model_type')!r}: the authors' code knows Llama only, as Vicuna."
        )
    given = _text_config(fields, str(folder / "config.json"))
    problems = [
        f"{name}: {getattr(given, name)!r} is not the {getattr(text, name)!r} of {generator / 'config.json'}"
        for name in _SAME
        if getattr(given, name) != getattr(text, name)
    ]
    if problems:
        raise ConfigError(str(folder / "config.json"), problems)


def _tensors(folder: Path, vision: Path, llm: Path | None) -> tuple[dict[str, Stored], tuple[str, ...]]:
    path = folder / TWO_PART_FILE
    if path.is_file() and has_weights(folder):
        raise CheckpointError(f"{folder} holds a whole model and {path.name}: take the one away that is not meant.")
    if not path.is_file() and llm is not None:
        raise InputError(f"{folder} holds no {path.name}, and so a language model of its own: leave --llm out.")
    if path.is_file() and llm is None:
        raise InputError(f"{folder} holds a generator only ({path.name}): pass --llm FOLDER, its language model.")
    if llm is None:
        found = list_folder(folder)
    else:
        generator = {_generator_name(key): stored for key, stored in list_file(path).items()}
        found = list_folder(llm)
        for key in sorted(found.keys() & generator.keys()):
            raise CheckpointError(f"{found[key]} is in {path} too: take a plain language model.")
        found |= generator
    if any(key.startswith("model.vision_tower.") for key in found):
        return found, ()
    stored = list_folder(vision)
    left_out = tuple(key for key in stored if key.startswith(_NOT_VISION))
    tower = {THEIR_VISION + key.removeprefix("vision_model."): one for key, one in stored.items()}
    return found | {key: one for key, one in tower.items() if one.key not in left_out}, left_out


def _generator_name(key: str) -> str:
    """`mm_projector.X` and `model.mm_projector.X` are one."""
    bare = key.removeprefix("model.")
    return THEIR_GENERATOR + bare.removeprefix("mm_projector.") if bare.startswith("mm_projector.") else key
