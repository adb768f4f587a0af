"""A checkpoint of the authors -> ours, file by file: no more than a gigabyte of weights is in memory at a time.

Everything is checked before anything is written: all files are there, every tensor has a place and every place a
tensor, all shapes fit. The folder is made beside its destination and appears when it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from ..model import VLoRAConfig, VLoRAForConditionalGeneration, VLoRAProcessor
from .authors import GENERATOR, LANGUAGE_MODEL, VISION
from .place import appearing, free_folder
from .plan import Piece, bytes_by_dtype, into_shards, make_plan
from .processor import IMAGE, processor_of
from .shards import opened
from .source import Source, read_json, read_source

PARTS = {"language_model": (LANGUAGE_MODEL, "lm_head."), "generator": (GENERATOR,), "vision": (VISION,)}

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
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
    destination = free_folder(Path(destination))
    given = read_source(Path(source), _maybe(vision), _maybe(language_model))
    processor, generation = processor_of(given), _generation_config(given)
    pieces, recomputed = make_plan(given)
    shards = into_shards(pieces)
    _finish_config(given.config, processor, pieces)
    with appearing(destination, sum(piece.nbytes for piece in pieces)) as folder:
        for part in (given.config, generation, processor):
            part.save_pretrained(folder)
        _write_shards(folder, shards, progress or (lambda _done, _total: None))
    return Conversion(
        source=str(source),
        destination=str(destination),
        read=len({piece.origin.key for piece in pieces}),
        written={part: sum(piece.name.startswith(names) for piece in pieces) for part, names in PARTS.items()},
        recomputed=recomputed,
        not_vision=len(given.left_out),
        dtypes=bytes_by_dtype(pieces),
        files=len(shards),
        image_token_id=given.config.image_token_id or 0,
    )


def _maybe(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _generation_config(given: Source) -> GenerationConfig:
    """Their tokens that end a text; and how they sample, if they do."""
    path, text = given.folder / "generation_config.json", given.config.text_config
    wishes = read_json(path) if path.is_file() else {}
    fields = {name: wishes.get(name, getattr(text, name)) for name in _TOKENS}
    if wishes.get("do_sample"):
        fields |= {name: wishes[name] for name in ("do_sample", *_SAMPLING) if name in wishes}
    return GenerationConfig(**{name: value for name, value in fields.items() if value != -1})  # once, for none


def _finish_config(config: VLoRAConfig, processor: VLoRAProcessor, pieces: Sequence[Piece]) -> None:
    config.architectures = [VLoRAForConditionalGeneration.__name__]
    config.image_placeholder = "mask"
    config.image_token_id = int(processor.tokenizer.convert_tokens_to_ids(IMAGE))
    embedding = LANGUAGE_MODEL + "embed_tokens.weight"
    config.dtype = next(piece.dtype for piece in pieces if piece.name == embedding)


def _write_shards(folder: Path, shards: Sequence[Sequence[Piece]], progress: Progress) -> None:
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


def _write_shard(path: Path, shard: Sequence[Piece]) -> None:
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
