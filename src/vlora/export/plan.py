"""What goes where: every tensor of ours has its origin, and every tensor of theirs a place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..errors import CheckpointError
from ..model import VLoRAForConditionalGeneration
from .authors import THEIR_GENERATOR, THEIR_VISION, Origin, origins
from .shards import Stored, opened
from .source import Source

SHARD_BYTES = 1_000_000_000
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_INV_FREQ = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_POSITION_IDS = THEIR_VISION + "embeddings.position_ids"


@dataclass(frozen=True)
class Piece:
    """One of our tensors, and where it comes from.

    Args:
        name: ours.
        shape: ours.
        origin: what it is of theirs.
        stored: where theirs is.
    """

    name: str
    shape: tuple[int, ...]
    origin: Origin
    stored: Stored

    @property
    def dtype(self) -> torch.dtype:
        """Precision, which is theirs."""
        assert self.stored.dtype is not None  # checked with the plan
        return self.stored.dtype

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize


def make_plan(given: Source) -> tuple[list[Piece], list[str]]:
    """Every tensor of ours with its origin, and the tensors of theirs that are recomputed.

    Raises:
        CheckpointError: a tensor without a place, a place without a tensor, a wrong shape or precision.
    """
    with torch.device("meta"):  # the shapes of a model of any size, without its memory
        model = VLoRAForConditionalGeneration(given.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if given.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    wanted = origins(shapes, letters=given.fields["vlora_type"], layers=model.model.generator.layers)
    _check_complete(wanted, given)
    _check_shapes(wanted, given)
    used = {origin.key for origin in wanted.values()}
    recomputed = [key for key in given.tensors if key not in used]
    _check_recomputed(recomputed, given)
    for key in used:
        if given.tensors[key].dtype not in FLOATS:
            raise CheckpointError(
                f"{given.tensors[key]} is not in float32, float16 or bfloat16: get a checkpoint that is not quantised."
            )
    return [Piece(name, shapes[name], one, given.tensors[one.key]) for name, one in wanted.items()], recomputed


def _check_complete(wanted: Mapping[str, Origin], given: Source) -> None:
    missing = sorted({origin.key for origin in wanted.values()} - given.tensors.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise CheckpointError(
            f"{_home(missing[0], given)} lacks {missing[0]!r}{more}, which {given.folder / 'config.json'} asks for: "
            "get the weights again, or the config.json that belongs to them."
        )


def _home(key: str, given: Source) -> Path:
    """The file, or the folder of several files, where a tensor should be."""
    part = next((prefix for prefix in (THEIR_VISION, THEIR_GENERATOR) if key.startswith(prefix)), "")
    files = {stored.file for name, stored in given.tensors.items() if name.startswith(part)}
    return files.pop() if len(files) == 1 else next(iter(files), given.folder / "config.json").parent


def _check_shapes(wanted: Mapping[str, Origin], given: Source) -> None:
    wrong = {o.key: o.shape for o in wanted.values() if given.tensors[o.key].shape != o.shape}
    if not wrong:
        return
    width = THEIR_GENERATOR + "visual_proj.weight"  # says most clearly what is wrong if the width is
    key = width if width in wrong else min(wrong)
    advice = "get the config.json that belongs to these weights"
    if key == width:
        advice = (
            f"set vlora_dim from {given.fields['vlora_dim']} to {given.tensors[width].shape[0]} if that is what it was "
            "trained with (the authors' scripts name both 512 and 1024)"
        )
    raise CheckpointError(
        f"{given.tensors[key]} has the shape {list(given.tensors[key].shape)}, and {given.folder / 'config.json'} asks "
        f"for {list(wrong[key])}: {advice}."
    )


def _check_recomputed(keys: Sequence[str], given: Source) -> None:
    """Refuse tensors without a place, unless the model would compute just these."""
    for key in keys:
        if not _is_computed(key, given):
            raise CheckpointError(
                f"{given.tensors[key]} has no place in the model that {given.folder / 'config.json'} describes: "
                "get the config.json that belongs to these weights."
            )
    for path in dict.fromkeys(given.tensors[key].file for key in keys):
        with opened(path) as get:
            for key in (key for key in keys if given.tensors[key].file == path):
                if not _same(get(given.tensors[key].key), _computed(key, given)):
                    raise CheckpointError(
                        f"{given.tensors[key]} is not what the model computes from {given.folder / 'config.json'}, and "
                        "would be lost: get the config.json that belongs to these weights."
                    )


def _is_computed(key: str, given: Source) -> bool:
    """Whether old checkpoints have stored what the model computes itself."""
    tied = key == "lm_head.weight" and given.config.tie_word_embeddings
    return bool(_INV_FREQ.fullmatch(key)) or key == _POSITION_IDS or tied


def _computed(key: str, given: Source) -> Tensor:
    if _INV_FREQ.fullmatch(key):
        return LlamaRotaryEmbedding(given.config.text_config).inv_freq
    if key == _POSITION_IDS:
        tower = given.config.vision_config
        return torch.arange((tower.image_size // tower.patch_size) ** 2 + 1)[None]
    embedding = given.tensors["model.embed_tokens.weight"]
    with opened(embedding.file) as get:
        return get(embedding.key).clone()


def _same(tensor: Tensor, expected: Tensor) -> bool:
    if tensor.shape != expected.shape:
        return False
    if not tensor.is_floating_point():
        return torch.equal(tensor.long(), expected.long())
    rounding = max(1e-6, torch.finfo(tensor.dtype).eps)  # of the last digits, which differ with the machine
    return torch.allclose(tensor.float(), expected.float(), rtol=rounding, atol=0)


def into_shards(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """What is written together: out of one file, and not too much."""
    files: dict[Path, list[Piece]] = {}
    for piece in pieces:
        files.setdefault(piece.stored.file, []).append(piece)
    shards: list[list[Piece]] = []
    for members in files.values():
        shards.append([])
        for piece in members:
            if shards[-1] and sum(one.nbytes for one in shards[-1]) + piece.nbytes > SHARD_BYTES:
                shards.append([])
            shards[-1].append(piece)
    return shards


def bytes_by_dtype(pieces: Sequence[Piece]) -> dict[str, int]:
    """Bytes in each precision."""
    found: dict[str, int] = {}
    for piece in pieces:
        name = str(piece.dtype).removeprefix("torch.")
        found[name] = found.get(name, 0) + piece.nbytes
    return found
