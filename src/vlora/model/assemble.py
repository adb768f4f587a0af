"""An LLM + a vision encoder + a generator config -> a model; and the two kinds of checkpoint.

full             a standard folder of transformers: `save_pretrained`, `from_pretrained`
generator only   the trained part, and the identity of the two models it belongs to:
                   config.json              VLoRAConfig
                   generator.safetensors    weights
                   parts.json               source and fingerprint of the language model and the vision encoder
                   preprocessor_config.json, chat_template.jinja
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig

# Not from the top level, where early 5.x offers it only beside torchvision, which its Pillow backend does not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..errors import CheckpointError, ModelNotFound
from .configuration import GeneratorConfig, VLoRAConfig
from .inject import check_supported
from .modeling import VLoRAForConditionalGeneration
from .processing import VLoRAProcessor

FORMAT_VERSION = 1
GENERATOR_FILE, PARTS_FILE = "generator.safetensors", "parts.json"
SAMPLES = 64  # entries of each tensor that enter a fingerprint


@dataclass(frozen=True)
class Part:
    """A frozen part of a model.

    Args:
        source: where to load it from: a hub id, a folder, or a name that `vlora.load` knows.
        fingerprint: see `fingerprint`.
    """

    source: str
    fingerprint: str


@dataclass(frozen=True)
class Parts:
    """The two models that a generator belongs to."""

    language_model: Part
    vision: Part


def assemble(
    *,
    causal_lm: nn.Module,
    vision_tower: nn.Module,
    generator: GeneratorConfig,
    **options: Any,
) -> VLoRAForConditionalGeneration:
    """Join a loaded language model and a loaded vision encoder with a fresh generator.

    Args:
        causal_lm: with its head.
        vision_tower: the encoder.
        generator: sizes and options of the generator.
        **options: further fields of `VLoRAConfig`.

    Raises:
        UnsupportedModel: a language model that cannot wear weights.
    """
    check_supported(causal_lm.config.model_type)  # type: ignore[union-attr]
    config = VLoRAConfig(
        vision_config=vision_tower.config,  # type: ignore[arg-type]
        text_config=causal_lm.config,  # type: ignore[arg-type]
        generator_config=generator,
        **options,
    )
    return VLoRAForConditionalGeneration(config, vision_tower=vision_tower, causal_lm=causal_lm).eval()


def load_language_model(source: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A decoder with its head, from a folder or a hub id.

    Raises:
        ModelNotFound: no such model.
        UnsupportedModel: a family that cannot wear weights.
    """
    check_supported(_config_of(source).model_type)
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype)


def load_vision_tower(source: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A vision encoder, from a folder or a hub id; of a two-tower model (CLIP, SigLIP) its vision tower.

    Raises:
        ModelNotFound: no such model.
    """
    config = _config_of(source)
    return AutoModel.from_pretrained(source, config=getattr(config, "vision_config", config), dtype=dtype)


def _config_of(source: str | Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"There is no model {str(source)!r}: give a folder with a config.json, or the id of a model on the hub."
        ) from error


def fingerprint(module: nn.Module) -> str:
    """A short identity of a module's weights, the same in float32 and bfloat16.

    Hashes names, shapes and up to 64 evenly spread entries of each tensor, rounded to bfloat16: milliseconds, where
    hashing all bytes takes seconds to minutes. It tells models apart; it is no protection against forgery.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        sample = flat[::step][:SAMPLES].to("cpu", torch.bfloat16)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def parts_of(model: VLoRAForConditionalGeneration, *, language_model: str, vision: str) -> Parts:
    """The identity of a model's frozen parts, given where they came from."""
    return Parts(
        language_model=Part(language_model, fingerprint(model.model.language_model)),
        vision=Part(vision, fingerprint(model.model.vision_tower)),
    )


def save_generator(
    folder: str | Path,
    model: VLoRAForConditionalGeneration,
    processor: VLoRAProcessor,
    parts: Parts,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a generator-only checkpoint.

    Args:
        folder: made if need be.
        model: whose generator is written.
        processor: whose image processor and chat template are written.
        parts: see `parts_of`.
        dtype: precision of the stored weights; None keeps theirs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in model.model.generator.state_dict().items()
    }
    save_file(state, folder / GENERATOR_FILE, metadata={"format": "pt"})
    (folder / GENERATOR_FILE).chmod(0o644)  # safetensors writes for the owner only
    _save_config(folder, model.config)
    processor.image_processor.save_pretrained(folder)
    if processor.chat_template:
        (folder / "chat_template.jinja").write_text(str(processor.chat_template), encoding="utf-8")
    record = {"format_version": FORMAT_VERSION, **asdict(parts)}
    (folder / PARTS_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _save_config(folder: Path, config: VLoRAConfig) -> None:
    """Without the folders that the parts were loaded from: `parts.json` says where they come from."""
    fields = config.to_diff_dict()
    for part in (fields, *(value for value in fields.values() if isinstance(value, dict))):
        part.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_parts(folder: str | Path) -> Parts:
    """What a generator-only checkpoint belongs to.

    Raises:
        CheckpointError: `parts.json` is damaged or of a later format.
    """
    path = Path(folder) / PARTS_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["format_version"]
        parts = Parts(Part(**record["language_model"]), Part(**record["vision"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is missing or damaged: get the checkpoint again.") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path} has format {version}; this version reads up to {FORMAT_VERSION}: update vlora.")
    return parts


def load_generator(
    folder: str | Path, *, causal_lm: nn.Module, vision_tower: nn.Module
) -> VLoRAForConditionalGeneration:
    """A model from a generator-only checkpoint and its two loaded parts.

    Raises:
        CheckpointError: weights missing, damaged, or made for other models than the given ones.
    """
    folder = Path(folder)
    parts = read_parts(folder)
    for name, module, part in (
        ("language model", causal_lm.get_submodule("model"), parts.language_model),
        ("vision encoder", vision_tower, parts.vision),
    ):
        given = fingerprint(module)
        if given != part.fingerprint:
            raise CheckpointError(
                f"The generator in {folder} was made for the {name} {part.source} (fingerprint {part.fingerprint}); "
                f"the given one has fingerprint {given}: load the {name} it was made for."
            )
    config = VLoRAConfig.from_pretrained(folder)
    config.text_config = causal_lm.config  # one configuration, not two that could come apart
    config.vision_config = vision_tower.config
    model = VLoRAForConditionalGeneration(config, vision_tower=vision_tower, causal_lm=causal_lm).eval()
    _fill(model.model.generator, folder / GENERATOR_FILE)
    return model


def _fill(generator: nn.Module, path: Path) -> None:
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: get the checkpoint again.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: get the checkpoint again.") from error
    own = generator.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    for problem, names in (("lacks", missing), ("has the unknown", extra), ("has a wrong shape for", wrong)):
        if names:
            raise CheckpointError(
                f"{path} {problem} {names[0]!r}{f' and {len(names) - 1} more' if names[1:] else ''}: "
                "it does not belong to the config.json beside it."
            )
    generator.load_state_dict(state)


def load_image_processor(folder: str | Path) -> Any:
    """The image processor of a checkpoint or a vision encoder.

    Raises:
        ModelNotFound: none there.
    """
    try:
        return AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelNotFound(
            f"There is no preprocessor_config.json in {str(folder)!r}: get the checkpoint again."
        ) from error
