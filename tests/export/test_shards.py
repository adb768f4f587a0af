"""Weight files: what they hold, and one sentence about each way they can be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.checkpoints import INDEX, Attack, as_bin, as_one_file, change_shard, copy_official, tensors_of
from vlora.errors import CheckpointError
from vlora.export.shards import has_weights, list_file, list_folder, opened

KEY = "model.layers.2.mlp.up_proj.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return copy_official(tmp_path)


def refused(folder: Path, *words: str) -> str:
    """The one sentence about a folder, which has these words."""
    with pytest.raises(CheckpointError) as caught:
        list_folder(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    return message


@pytest.mark.parametrize("form", ["parts", "one file", "bin", "bin in parts", "old bin"])
def test_every_form_holds_the_same(checkpoint: Path, form: str) -> None:
    expected = tensors_of(checkpoint)
    if form == "one file":
        as_one_file(checkpoint, expected)
    elif form != "parts":
        as_bin(checkpoint, shards=3 if form == "bin in parts" else 1, zipped=form != "old bin")
    assert has_weights(checkpoint)
    listed = list_folder(checkpoint)
    assert listed.keys() == expected.keys()
    for path in {stored.file for stored in listed.values()}:
        with opened(path) as get:
            for key, stored in listed.items():
                tensor = expected[key]
                assert (stored.shape, stored.dtype, stored.nbytes) == (tuple(tensor.shape), tensor.dtype, tensor.nbytes)
                assert stored.file != path or torch.equal(get(key), tensor)


def test_safetensors_come_first(checkpoint: Path) -> None:
    torch.save({"other": torch.zeros(1)}, checkpoint / "pytorch_model.bin")
    assert "other" not in list_folder(checkpoint)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_missing_file(checkpoint: Path, form: str) -> None:
    if form == "bin":
        as_bin(checkpoint, shards=2)
    gone = list_folder(checkpoint)[KEY].file
    gone.unlink()
    first = min(key for key, name in _where(checkpoint).items() if name == gone.name)
    refused(checkpoint, str(gone), "is missing", repr(first))


@pytest.mark.parametrize("form", ["safetensors", "bin", "old bin"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_short(checkpoint: Path, form: str, kept: float) -> None:
    if form != "safetensors":
        as_bin(checkpoint, shards=2, zipped=form == "bin")
    path = list_folder(checkpoint)[KEY].file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    first = min(key for key, name in _where(checkpoint).items() if name == path.name)
    refused(checkpoint, str(path), repr(first))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_malicious_pickle_is_refused_and_not_executed(checkpoint: Path, zipped: bool, shards: int) -> None:
    path = as_bin(checkpoint, shards=shards, zipped=zipped)[0]
    proof = checkpoint / "executed"
    tensors = torch.load(path, weights_only=True)
    torch.save(tensors | {KEY: Attack(proof)}, path, _use_new_zipfile_serialization=zipped)
    refused(checkpoint, str(path), "is refused", "nothing in it was executed")
    assert not proof.exists()
    torch.load(path, weights_only=False)  # it would have been
    assert proof.exists()


def test_a_key_that_the_index_does_not_know(checkpoint: Path) -> None:
    path = change_shard(checkpoint, KEY, lambda tensors: tensors.update(surprise=torch.zeros(1)))
    refused(checkpoint, str(path), "'surprise'", INDEX)


def test_a_key_that_only_the_index_knows(checkpoint: Path) -> None:
    path = change_shard(checkpoint, KEY, lambda tensors: tensors.pop(KEY))
    refused(checkpoint, str(path), repr(KEY), INDEX)


def test_a_file_that_the_index_does_not_know(checkpoint: Path) -> None:
    save_file({"surprise": torch.zeros(1)}, checkpoint / "model-00009-of-00009.safetensors")
    refused(checkpoint, "model-00009-of-00009.safetensors", INDEX)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', "{}"])
def test_a_damaged_index(checkpoint: Path, text: str) -> None:
    (checkpoint / INDEX).write_text(text)
    refused(checkpoint, INDEX, "is damaged")


@pytest.mark.parametrize("name", ["../vision/model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_that_points_elsewhere(checkpoint: Path, name: str) -> None:
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": _where(checkpoint) | {"outside": name}}))
    refused(checkpoint, INDEX, "is damaged")


def test_parts_without_an_index(checkpoint: Path) -> None:
    (checkpoint / INDEX).unlink()
    assert has_weights(checkpoint)
    refused(checkpoint, "model-00001-of-00004.safetensors", "no index")


def test_no_weights(tmp_path: Path) -> None:
    assert not has_weights(tmp_path)
    refused(tmp_path, str(tmp_path), "model.safetensors or pytorch_model.bin")


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"state_dict": {"a": torch.zeros(1)}}, {1: torch.zeros(1)}, {"a": "text"}]
)
def test_a_pickle_of_something_else(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    refused(tmp_path, str(path), "tensor")


def test_sparse_tensors(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.eye(3).to_sparse()}, path)
    refused(tmp_path, str(path), "'a'")


def test_unknown_precision(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, dtype=torch.uint8)}, path)
    assert list_file(path)["a"].dtype is None


def _where(checkpoint: Path) -> dict[str, str]:
    (index,) = checkpoint.glob("*.index.json")
    return json.loads(index.read_text())["weight_map"]


def test_reading_one_tensor_leaves_the_others(checkpoint: Path) -> None:
    path = list_folder(checkpoint)[KEY].file
    with opened(path) as get:
        tensor = get(KEY).clone()
    assert torch.equal(tensor, load_file(path)[KEY])
