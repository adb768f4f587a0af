"""An adapter in the form of PEFT: in memory, or as a folder that peft, vLLM and SGLang load.

    folder/
      adapter_config.json         LoraConfig
      adapter_model.safetensors   base_model.model.model.layers.3.self_attn.v_proj.lora_A.weight [rank, in_dim], ...
      README.md                   model card: which image, which base model, how to use it
      vlora.json                  the identity of both, for `check_folder`

The first two are what `PeftModel.save_pretrained` writes of an equal adapter, tensor for tensor and field for field.
Only the layers and targets in use are named. To hand an adapter over without a disk:

    model = peft.get_peft_model(llm, peft.LoraConfig(**lora_config(adapter)))
    peft.set_peft_model_state_dict(model, state_dict(adapter))

and to see another image with the same model:

    peft.utils.hotswap.hotswap_adapter_from_state_dict(
        model, state_dict(another, name="default"), "default", model.peft_config["default"]
    )
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.inject import MODULE_OF
from .adapter import Adapter, Base, cast, check_base
from .card import card
from .place import appearing, free_folder

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, IDENTITY_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
    "vlora.json",
)
FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, IDENTITY_FILE)
FORMAT_VERSION = 1
PEFT_VERSION = "0.21.2"
"""Whose form of `adapter_config.json` is written; earlier versions pass over fields they do not know."""

_PREFIX = "base_model.model.model."
# Every field of a LoraConfig that does not depend on the adapter, as PEFT writes it.
_CONSTANT: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": "layers",
    "loftq_config": {},
    "lora_bias": False,
    "lora_dropout": 0.0,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": PEFT_VERSION,
    "qalora_group_size": 16,
    "rank_pattern": {},
    "revision": None,
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}


def state_dict(adapter: Adapter, *, dtype: torch.dtype | None = None, name: str | None = None) -> dict[str, Tensor]:
    """The tensors of a PEFT adapter, by the names in its file; of their own memory.

    Args:
        adapter: see `adapter_of`.
        dtype: their precision; None keeps that of the weights.
        name: of the adapter in a model of peft, whose own names have it in them; files have not.

    Raises:
        InputError: numbers that the precision cannot hold.
    """
    own = f".{name}" if name else ""
    tensors: dict[str, Tensor] = {}
    for layer, target in adapter.weights.layout.place_of:
        for letter, factor in zip("AB", adapter.pair(layer, target), strict=True):
            module = f"{_PREFIX}layers.{layer}.{MODULE_OF[target]}"
            tensors[f"{module}.lora_{letter}{own}.weight"] = cast(factor, dtype)
    return tensors


def lora_config(adapter: Adapter) -> dict[str, Any]:
    """The fields that set an adapter's LoraConfig apart; all others have PEFT's defaults."""
    return {
        "base_model_name_or_path": adapter.base.name,
        "task_type": "CAUSAL_LM",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": sorted(MODULE_OF[target].split(".")[1] for target in adapter.targets),
        "layers_to_transform": list(adapter.layers),
        "layers_pattern": "layers",
    }


def whole_config(adapter: Adapter) -> dict[str, Any]:
    """Every field of `adapter_config.json`, what SGLang takes beside tensors."""
    return dict(sorted((_CONSTANT | lora_config(adapter)).items()))


def save_folder(
    adapter: Adapter, folder: str | Path, *, dtype: torch.dtype | None = None, force: bool = False
) -> dict[str, int]:
    """Write a PEFT folder; it appears when it is complete.

    Args:
        adapter: see `adapter_of`.
        folder: that does not exist yet, or is empty.
        dtype: precision of the tensors; None keeps that of the weights.
        force: replace an adapter that stands there.

    Returns:
        Bytes of each file.

    Raises:
        InputError: the place is taken or cannot be written, or numbers that the precision cannot hold.
    """
    destination = free_folder(Path(folder), ours=FILES, force=force)
    tensors = state_dict(adapter, dtype=dtype)
    written = {
        CONFIG_FILE: json.dumps(whole_config(adapter), indent=2, sort_keys=True).encode(),
        WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}),
        CARD_FILE: card(adapter, next(iter(tensors.values())).dtype).encode(),
        IDENTITY_FILE: (json.dumps(identity(adapter), indent=2) + "\n").encode(),
    }
    with appearing(destination, sum(map(len, written.values()))) as place:
        for name, data in written.items():
            (place / name).write_bytes(data)
    return {name: len(data) for name, data in written.items()}


def identity(adapter: Adapter) -> dict[str, Any]:
    """Which images and which base model an adapter is of."""
    return {
        "format_version": FORMAT_VERSION,
        "base_model": asdict(adapter.base),
        "images": [asdict(image) for image in adapter.images],
    }


def read_base(folder: str | Path) -> Base:
    """The base model of an exported folder.

    Raises:
        CheckpointError: no folder that `save_folder` wrote.
    """
    path = Path(folder) / IDENTITY_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version, base = record["format_version"], Base(**record["base_model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is missing or damaged: export the image again.") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path} has format {version}; this version reads up to {FORMAT_VERSION}: update vlora.")
    return base


def check_folder(folder: str | Path, model: nn.Module) -> None:
    """Refuse an exported folder of another language model than the given one.

    Args:
        folder: what `save_folder` wrote.
        model: a language model with its head as transformers loads it, before peft wraps it, or one of ours.

    Raises:
        CheckpointError: another language model, or no exported folder.
    """
    base = read_base(folder)
    check_base(base.fingerprint, model, what=f"The adapter in {folder}", name=base.name)
