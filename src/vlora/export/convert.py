"""A checkpoint of the authors -> ours, file by file: no more than a gigabyte of weights is in memory at a time.

Everything is checked before anything is written: all files are there, every tensor has a place and every place a
tensor, all shapes fit. The folder is made beside its destination and appears when it is complete.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..errors import CheckpointError, InputError
from ..model import VLoRAConfig, VLoRAForConditionalGeneration
from .authors import GENERATOR, LANGUAGE_MODEL, THEIR_GENERATOR, THEIR_VISION, VISION, Origin, origins
from .processor import IMAGE, processor_of
from .shards import Stored, opened
from .source import Source, read_source

SHARD_BYTES = 1_000_000_000
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
PARTS = {"language_model": (LANGUAGE_MODEL, "lm_head."), "generator": (GENERATOR,), "vision": (VISION,)}

_INV_FREQ = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_POSITION_IDS = THEIR_VISION + "embeddings.position_ids"
_SAMPLING = ("temperature", "top_k", "top_p", "typical_p", "min_p", "repetition_penalty")

Progress = Callable[[int, int], None]
"""Told how many bytes are written, and how many there will be."""


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Args:
        source: where it was.
        destination: where it is now.
        read: tensors of theirs that were taken over.
        written: tensors of ours in each part of the model; one of theirs may have become several.
        recomputed: tensors of theirs that the model computes itself; they were as it would compute them.
        not_vision: tensors of a CLIP that are not part of its vision tower.
        dtypes: bytes in each precision.
        files: with weights.
        image_token_id: of the place that an image keeps in the text.
    """

    source: str
    destination: str
    read: int
    written: Mapping[str, int]
    recomputed: Sequence[str]
    not_vision: int
    dtypes: Mapping[str, int]
    files: int
    image_token_id: int

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(self.dtypes.values())


@dataclass(frozen=True)
class _Piece:
    """One of our tensors, and where it comes from."""

    name: str
    shape: tuple[int, ...]
    origin: Origin
    stored: Stored

    @property
    def dtype(self) -> torch.dtype:
        assert self.stored.dtype is not None  # checked with the plan
        return self.stored.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def convert_authors(
    source: str | Path,
    destination: str | Path,
    *,
    vision: str | Path | None = None,
    language_model: str | Path | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint of the VLoRA authors (`model_type: llava_vlora`) to a full checkpoint of ours.

    Args:
        source: its folder: safetensors or `.bin` files, whole or in parts, or `mm_projector.bin`.
        destination: a folder that does not exist yet, or is empty.
        vision: the folder of its CLIP; default: where its configuration says, beside it.
        language_model: the folder of its language model, for `mm_projector.bin`.
        progress: told how far it is.

    Raises:
        VLoRAError: whatever is wrong; then nothing was written.
    """
    destination = _free(Path(destination))
    given = read_source(Path(source), _maybe(vision), _maybe(language_model))
    processor = processor_of(given)
    config = given.config
    config.image_placeholder = "mask"
    config.image_token_id = int(processor.tokenizer.convert_tokens_to_ids(IMAGE))
    pieces, recomputed = _plan(given)
    shards = _shards(pieces)
    with _appearing(destination, sum(piece.nbytes for piece in pieces)) as folder:
        _write_settings(folder, given, pieces)
        processor.save_pretrained(folder)
        _write_shards(folder, shards, progress or (lambda _done, _total: None))
    return Conversion(
        source=str(source),
        destination=str(destination),
        read=len({piece.origin.key for piece in pieces}),
        written={part: sum(piece.name.startswith(names) for piece in pieces) for part, names in PARTS.items()},
        recomputed=recomputed,
        not_vision=len(given.left_out),
        dtypes=_bytes_by_dtype(pieces),
        files=len(shards),
        image_token_id=config.image_token_id,
    )


def _maybe(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


# ---- what goes where --------------------------------------------------------------------------------


def _plan(given: Source) -> tuple[list[_Piece], list[str]]:
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
    for key in recomputed:
        _check_recomputed(key, given)
    for key in used:
        if given.tensors[key].dtype not in FLOATS:
            raise CheckpointError(
                f"{given.tensors[key]} is not in float32, float16 or bfloat16: get a checkpoint that is not quantised."
            )
    return [_Piece(name, shapes[name], one, given.tensors[one.key]) for name, one in wanted.items()], recomputed


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


def _check_recomputed(key: str, given: Source) -> None:
    """Refuse a tensor without a place, unless the model would compute just this."""
    stored = given.tensors[key]
    with opened(stored.file) as get:
        tensor = get(stored.key).clone()
    expected = _computed(key, given)
    if expected is None:
        raise CheckpointError(
            f"{stored} has no place in the model that {given.folder / 'config.json'} describes: "
            "get the config.json that belongs to these weights."
        )
    if tensor.shape != expected.shape or not _close(tensor, expected):
        raise CheckpointError(
            f"{stored} is not what the model computes from {given.folder / 'config.json'}, and would be lost: "
            "get the config.json that belongs to these weights."
        )


def _computed(key: str, given: Source) -> Tensor | None:
    """What the model computes itself and old checkpoints have stored."""
    if _INV_FREQ.fullmatch(key):
        return LlamaRotaryEmbedding(given.config.text_config).inv_freq
    if key == _POSITION_IDS:
        tower = given.config.vision_config
        return torch.arange((tower.image_size // tower.patch_size) ** 2 + 1)[None]
    if key == "lm_head.weight":  # here only if it is tied to the embedding
        embedding = given.tensors["model.embed_tokens.weight"]
        with opened(embedding.file) as get:
            return get(embedding.key).clone()
    return None


def _close(tensor: Tensor, expected: Tensor) -> bool:
    if not tensor.is_floating_point():
        return torch.equal(tensor.long(), expected.long())
    rounding = max(1e-6, torch.finfo(tensor.dtype).eps)  # of the last digits, which differ with the machine
    return torch.allclose(tensor.float(), expected.float(), rtol=rounding, atol=0)


def _shards(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """What is written together: out of one file, and not too much."""
    files: dict[Path, list[_Piece]] = {}
    for piece in pieces:
        files.setdefault(piece.stored.file, []).append(piece)
    shards: list[list[_Piece]] = []
    for members in files.values():
        shards.append([])
        for piece in members:
            if shards[-1] and sum(one.nbytes for one in shards[-1]) + piece.nbytes > SHARD_BYTES:
                shards.append([])
            shards[-1].append(piece)
    return shards


def _bytes_by_dtype(pieces: Sequence[_Piece]) -> dict[str, int]:
    found: dict[str, int] = {}
    for piece in pieces:
        name = str(piece.dtype).removeprefix("torch.")
        found[name] = found.get(name, 0) + piece.nbytes
    return found


# ---- writing ----------------------------------------------------------------------------------------


def _free(destination: Path) -> Path:
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise InputError(f"{destination} exists already and is no empty folder: give another place.")
    return destination.absolute()


@contextmanager
def _appearing(destination: Path, nbytes: int) -> Generator[Path]:
    """A folder that takes its place when it is complete, and leaves nothing if it is not."""
    anchor = next(parent for parent in destination.parents if parent.is_dir())
    free = shutil.disk_usage(anchor).free
    if free < nbytes:
        raise InputError(
            f"{destination} needs {nbytes / 1e9:.1f} GB and {anchor} has {free / 1e9:.1f} GB left: give another place."
        )
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=anchor))
        yield folder
        folder.chmod(0o755)  # it was made for the owner only
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder.replace(destination)
    except BaseException as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(
                f"{destination} cannot be written ({error.strerror or error}): give another place."
            ) from error
        raise


def _write_settings(folder: Path, given: Source, pieces: Sequence[_Piece]) -> None:
    """`config.json` and `generation_config.json`."""
    config: VLoRAConfig = given.config
    config.architectures = [VLoRAForConditionalGeneration.__name__]
    embedding = LANGUAGE_MODEL + "embed_tokens.weight"
    config.dtype = next(piece.dtype for piece in pieces if piece.name == embedding)
    config.save_pretrained(folder)
    path = given.folder / "generation_config.json"
    text = config.text_config
    wishes: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    fields = {name: wishes.get(name, getattr(text, name)) for name in names}
    if wishes.get("do_sample"):
        fields |= {name: wishes[name] for name in ("do_sample", *_SAMPLING) if name in wishes}
    GenerationConfig(**fields).save_pretrained(folder)


def _write_shards(folder: Path, shards: Sequence[Sequence[_Piece]], progress: Progress) -> None:
    done, total = 0, sum(piece.nbytes for shard in shards for piece in shard)
    where: dict[str, str] = {}
    progress(done, total)
    for number, shard in enumerate(shards, 1):
        whole = len(shards) == 1
        name = "model.safetensors" if whole else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / name, shard)
        where |= dict.fromkeys((piece.name for piece in shard), name)
        done += sum(piece.nbytes for piece in shard)
        progress(done, total)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(path: Path, shard: Sequence[_Piece]) -> None:
    with opened(shard[0].stored.file) as get:
        state: dict[str, Tensor] = {}
        seen: set[int] = set()
        for piece in shard:
            tensor = piece.origin.of(get(piece.stored.key))
            # Two names of a pickle may share memory, which safetensors refuses.
            state[piece.name] = tensor.clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
        try:
            save_file(state, path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
    path.chmod(0o644)  # safetensors writes for the owner only
