"""What goes where: nothing new, nothing lost, and one sentence about whatever does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.export.checkpoints import (
    INDEX,
    PROJECTOR,
    TOWER,
    as_bin,
    as_one_file,
    change_fields,
    copy_official,
    in_two_parts,
    tensors_of,
)
from vlora.errors import CheckpointError
from vlora.export import plan
from vlora.export.plan import into_shards, make_plan
from vlora.export.source import read_source

UP = "model.layers.2.mlp.up_proj.weight"
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"
POSITION_IDS = TOWER + "vision_tower.vision_model.embeddings.position_ids"
WIDTH = PROJECTOR + "visual_proj.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return copy_official(tmp_path)


def changed(checkpoint: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """Its tensors in one file, after a change."""
    tensors = tensors_of(checkpoint)
    change(tensors)
    return as_one_file(checkpoint, tensors)


def refused(checkpoint: Path, *words: str, llm: Path | None = None) -> None:
    with pytest.raises(CheckpointError) as caught:
        make_plan(read_source(checkpoint, None, llm))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_every_tensor_is_accounted_for(checkpoint: Path) -> None:
    source = read_source(checkpoint, None, None)
    pieces, recomputed = make_plan(source)
    used = {piece.stored.key for piece in pieces}
    assert used.isdisjoint(recomputed)
    assert used | set(recomputed) == tensors_of(checkpoint).keys()
    assert recomputed == [INV_FREQ.replace("0", str(layer)) for layer in range(4)]
    assert len({piece.name for piece in pieces}) == len(pieces)
    assert sum(piece.nbytes for piece in pieces) == sum(source.tensors[key].nbytes for key in used)


@pytest.mark.parametrize("key", [UP, PROJECTOR + "Bs", PROJECTOR + "gen.3.queries", "lm_head.weight"])
def test_a_missing_tensor(checkpoint: Path, key: str) -> None:
    path = changed(checkpoint, lambda tensors: tensors.pop(key))
    refused(checkpoint, str(path), repr(key), "lacks")


def test_missing_tensors_are_counted(checkpoint: Path) -> None:
    change_fields(checkpoint, vlora_depth=3)
    refused(checkpoint, "lacks", "'model.mm_projector.gen.0.decoders.2.linear1.bias' and 89 more")


def test_a_missing_tensor_of_one_part_of_two(checkpoint: Path) -> None:
    llm = in_two_parts(checkpoint)
    path = checkpoint / "mm_projector.bin"
    tensors = torch.load(path, weights_only=True)
    del tensors[WIDTH]
    torch.save(tensors, path)
    refused(checkpoint, str(path), repr(WIDTH), "lacks", llm=llm)


def test_a_missing_tensor_of_the_tower(checkpoint: Path) -> None:
    key = TOWER + "vision_tower.vision_model.pre_layrnorm.bias"
    path = changed(checkpoint, lambda tensors: tensors.pop(key))
    refused(checkpoint, str(path), repr(key), "lacks")


@pytest.mark.parametrize("key", ["surprise", PROJECTOR + "gen.5.queries", "model.layers.4.mlp.up_proj.weight"])
def test_an_extra_tensor(checkpoint: Path, key: str) -> None:
    path = changed(checkpoint, lambda tensors: tensors.update({key: torch.zeros(2)}))
    refused(checkpoint, str(path), repr(key), "has no place")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (UP, (128, 63)),
        (PROJECTOR + "Bs", (1, 20, 256)),
        (PROJECTOR + "Bs", (1, 5, 512)),
        (PROJECTOR + "gen.0.queries", (2, 32)),
        (PROJECTOR + "gen.1.decoders.0.self_attn.in_proj_weight", (99, 32)),
        (PROJECTOR + "gen.2.weights_head.bias", (255,)),
        (TOWER + "vision_tower.vision_model.embeddings.position_embedding.weight", (6, 32)),
    ],
)
def test_a_wrong_shape(checkpoint: Path, key: str, shape: tuple[int, ...]) -> None:
    path = changed(checkpoint, lambda tensors: tensors.update({key: torch.zeros(shape)}))
    refused(checkpoint, str(path), repr(key), str(list(shape)), "config.json asks for")


@pytest.mark.parametrize("form", ["safetensors", "bin", "two parts"])
def test_a_width_that_the_config_does_not_name(checkpoint: Path, form: str) -> None:
    """Their scripts disagree: 1024 in one, 512 in the other."""
    llm = in_two_parts(checkpoint) if form == "two parts" else None
    if form == "bin":
        as_bin(checkpoint, shards=2)
    change_fields(checkpoint, vlora_dim=16)
    path = read_source(checkpoint, None, llm).tensors[WIDTH].file
    refused(checkpoint, str(path), repr(WIDTH), "[32, 32]", "[16, 32]", "set vlora_dim from 16 to 32", llm=llm)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float64, torch.float8_e4m3fn])
def test_a_quantised_tensor(checkpoint: Path, dtype: torch.dtype) -> None:
    path = changed(checkpoint, lambda tensors: tensors.update({UP: tensors[UP].to(dtype)}))
    refused(checkpoint, str(path), repr(UP), "quantised")


# ---- what the model computes itself -----------------------------------------------------------------


def _halved(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({INV_FREQ: tensors[INV_FREQ].to(dtype)})


@pytest.mark.parametrize(
    "change",
    [
        _halved(torch.bfloat16),
        _halved(torch.float16),
        lambda tensors: tensors.pop(INV_FREQ),
        lambda tensors: tensors.update({"model.rotary_emb.inv_freq": tensors[INV_FREQ].clone()}),
        lambda tensors: tensors.update({POSITION_IDS: torch.arange(5)[None]}),
    ],
)
def test_what_is_recomputed_may_be_there_or_not(checkpoint: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    before = tensors_of(checkpoint)
    change(before)
    as_one_file(checkpoint, before)
    pieces, recomputed = make_plan(read_source(checkpoint, None, None))
    assert {piece.stored.key for piece in pieces} | set(recomputed) == before.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (INV_FREQ, torch.ones(8)),
        (INV_FREQ, 1.001 * 10000.0 ** -(torch.arange(0, 16, 2) / 16)),
        (INV_FREQ, torch.ones(4)),
        (POSITION_IDS, torch.arange(5).flip(0)[None]),
        (POSITION_IDS, torch.arange(5)),
    ],
)
def test_what_would_be_computed_otherwise_is_not_dropped(checkpoint: Path, key: str, value: Tensor) -> None:
    path = changed(checkpoint, lambda tensors: tensors.update({key: value}))
    refused(checkpoint, str(path), repr(key), "would be lost")


def test_another_rope_base_is_noticed(checkpoint: Path) -> None:
    change_fields(checkpoint, rope_theta=20000.0)
    refused(checkpoint, "rotary_emb.inv_freq' in", "is not what the model computes")


def test_a_tied_head(checkpoint: Path) -> None:
    change_fields(checkpoint, tie_word_embeddings=True)
    refused(checkpoint, "'lm_head.weight'", "is not what the model computes")
    embedding = tensors_of(checkpoint)["model.embed_tokens.weight"]
    changed(checkpoint, lambda tensors: tensors.update({"lm_head.weight": embedding}))
    assert "lm_head.weight" in make_plan(read_source(checkpoint, None, None))[1]
    changed(checkpoint, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lm_head.weight" not in {piece.name for piece in make_plan(read_source(checkpoint, None, None))[0]}


# ---- shards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 100_000, 10**9])
def test_shards(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Each comes out of one file, and is no larger than the limit, or one tensor."""
    monkeypatch.setattr(plan, "SHARD_BYTES", limit)
    pieces, _ = make_plan(read_source(checkpoint, None, None))
    shards = into_shards(pieces)
    assert sorted(piece.name for shard in shards for piece in shard) == sorted(piece.name for piece in pieces)
    assert all(len({piece.stored.file for piece in shard}) == 1 for shard in shards)
    assert all(len(shard) == 1 or sum(piece.nbytes for piece in shard) <= limit for shard in shards)
    assert len(shards) == (len(pieces) if limit == 1 else len(shards))
    assert (len(shards) == 4) == (limit == 10**9)
    assert (checkpoint / INDEX).is_file()
