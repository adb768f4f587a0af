"""Checkpoints in the authors' layout: the one of the fixtures in other forms, and large ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from vlora.export.authors import generator_config, origins
from vlora.model import VLoRAConfig, VLoRAForConditionalGeneration

OFFICIAL = Path(__file__).parents[1] / "parity" / "fixtures" / "official_checkpoint"
INDEX = "model.safetensors.index.json"
TOWER = "model.vision_tower."
PROJECTOR = "model.mm_projector."


class Attack:
    """An object whose unpickling makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def copy_official(folder: Path) -> Path:
    """The checkpoint of the fixtures with its CLIP beside it, to be changed; the folder of the checkpoint."""
    shutil.copytree(OFFICIAL / "checkpoint", folder / "checkpoint")
    shutil.copytree(OFFICIAL / "vision", folder / "vision")
    return folder / "checkpoint"


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint of several safetensors files."""
    return {key: tensor for path in sorted(checkpoint.glob("*.safetensors")) for key, tensor in load_file(path).items()}


def change_fields(checkpoint: Path, **fields: Any) -> None:
    """Change its `config.json`."""
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_shard(checkpoint: Path, key: str, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """Rewrite the file that holds a tensor; the index stays."""
    name = json.loads((checkpoint / INDEX).read_text())["weight_map"][key]
    tensors = load_file(checkpoint / name)
    change(tensors)
    save_file(tensors, checkpoint / name)
    return checkpoint / name


def as_one_file(checkpoint: Path, tensors: dict[str, Tensor]) -> Path:
    """Put other tensors in place of a checkpoint's."""
    for path in (*checkpoint.glob("*.safetensors"), checkpoint / INDEX):
        path.unlink(missing_ok=True)
    save_file(tensors, checkpoint / "model.safetensors")
    return checkpoint / "model.safetensors"


def as_bin(checkpoint: Path, *, shards: int = 1, zipped: bool = True) -> list[Path]:
    """Turn a checkpoint into the `.bin` form."""
    tensors = tensors_of(checkpoint)
    for path in (*checkpoint.glob("*.safetensors"), checkpoint / INDEX):
        path.unlink()
    keys = list(tensors)
    where: dict[str, str] = {}
    for number in range(shards):
        name = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = {key: tensors[key] for key in keys[number::shards]}
        torch.save(part, checkpoint / name, _use_new_zipfile_serialization=zipped)
        where |= dict.fromkeys(part, name)
    if shards > 1:
        (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    return [checkpoint / name for name in dict.fromkeys(where.values())]


def in_two_parts(checkpoint: Path, prefix: str = PROJECTOR) -> Path:
    """Leave the generator in `mm_projector.bin`; the folder of the language model beside it."""
    tensors = tensors_of(checkpoint)
    for path in (*checkpoint.glob("*.safetensors"), checkpoint / INDEX):
        path.unlink()
    generator = {key: tensor for key, tensor in tensors.items() if key.startswith(PROJECTOR)}
    torch.save(
        {prefix + key.removeprefix(PROJECTOR): tensor for key, tensor in generator.items()},
        checkpoint / "mm_projector.bin",
    )
    llm = checkpoint.parent / "llm"
    llm.mkdir()
    fields = json.loads((checkpoint / "config.json").read_text())
    own = {name: value for name, value in fields.items() if not name.startswith(("mm_", "vlora_"))}
    (llm / "config.json").write_text(json.dumps(own | {"model_type": "llama"}))
    rest = {key: tensor for key, tensor in tensors.items() if key not in generator and not key.startswith(TOWER)}
    save_file(rest, llm / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.move(checkpoint / name, llm / name)
    return llm


def write_large(folder: Path, shard_bytes: int, **llm: int) -> tuple[Path, int]:
    """A checkpoint of a chosen size, file by file, in bfloat16; every tensor tells where it belongs.

    Args:
        folder: where; its CLIP goes beside it.
        shard_bytes: of the largest file.
        **llm: sizes of the language model.

    Returns:
        The folder of the checkpoint, and the bytes of all weights.
    """
    checkpoint = copy_official(folder)
    for path in (*checkpoint.glob("*.safetensors"), checkpoint / INDEX):
        path.unlink()
    sizes = {"num_attention_heads": 16, "num_key_value_heads": 16, **llm}
    change_fields(checkpoint, **sizes, vlora_llm_dim=llm["hidden_size"], vlora_llm_depth=llm["num_hidden_layers"])
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = total = 0
    for key, shape in their_shapes(checkpoint).items():
        size = 2 * torch.Size(shape).numel()
        if used + size > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][key] = shape
        used, total = used + size, total + size
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({key: marked(key, shape) for key, shape in shard.items()}, checkpoint / name)
        where |= dict.fromkeys(shard, name)
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": where}))
    return checkpoint, total


def their_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """What a checkpoint with this configuration holds."""
    fields = json.loads((checkpoint / "config.json").read_text())
    vision = json.loads((checkpoint.parent / "vision" / "config.json").read_text())
    config = VLoRAConfig(
        vision_config=CLIPVisionConfig(**_known(CLIPVisionConfig, vision)),
        text_config=LlamaConfig(**_known(LlamaConfig, fields)),
        generator_config=generator_config(fields, "the test"),
    )
    with torch.device("meta"):
        model = VLoRAForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = origins(shapes, letters=fields["vlora_type"], layers=model.model.generator.layers)
    return {origin.key: origin.shape for origin in found.values()}


def _known(kind: type[PreTrainedConfig], fields: dict[str, Any]) -> dict[str, Any]:
    own = kind().to_dict().keys() - {"model_type", "architectures"}
    return {name: value for name, value in fields.items() if name in own}


def marked(key: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor that no other key has: it counts up from the key's own number."""
    count = torch.Size(shape).numel()
    row = torch.arange(min(count, 1 << 16), dtype=torch.float32) % 251 + sum(map(ord, key)) % 4096
    return row.bfloat16().repeat(-(-count // len(row)))[:count].view(shape)
