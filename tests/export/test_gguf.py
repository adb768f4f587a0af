"""A GGUF adapter holds what llama.cpp asks for, in its order of rows; a template takes each image at the same bytes."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import images, plain_llm, shared_model, tiny_llm
from vlora.errors import CheckpointError, InputError, MissingDependency, UnsupportedModel
from vlora.export.adapter import Adapter, Origin, adapter_of, base_of
from vlora.export.gguf import FAMILIES, Template, as_neighbours, check_file, family_of, save_file
from vlora.model.inject import SUPPORTED
from vlora.model.weights import MERGEABLE

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@torch.no_grad()
def adapter_for(family: str = "llama", *seeds: int, **options: Any) -> Adapter:
    model = shared_model(family, **({"targets": MERGEABLE} | options))
    pixels = torch.cat([images(1, seed) for seed in seeds or (1,)])
    base = base_of(model, name="owner/name")
    return adapter_of(model.expand(model.perceive(pixels)).composed(), base, images=(Origin("pixels", "ab" * 32),))


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Every tensor in float32."""
    return {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options", [{}, {"factors": "b"}, {"factors": "ab", "static_rank": 2, "layers": (0, 3)}], ids=str
)
def test_what_is_written(tmp_path: Path, options: dict[str, Any], dtype: torch.dtype) -> None:
    adapter, path = adapter_for("qwen2", **options), tmp_path / "a.gguf"
    assert save_file(adapter, path, dtype=dtype) == path.stat().st_size
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "qwen2",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": pytest.approx(adapter.alpha),
        "vlora.base.fingerprint": adapter.base.fingerprint,
        "general.base_model.count": 1,
        "general.base_model.0.name": "owner/name",
        "vlora.images": ["pixels sha256:" + "ab" * 32],
    }
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {DTYPES[dtype]}
    found = tensors_of(path)
    assert len(found) == 2 * len(adapter.weights.layout.places)
    for layer, target in adapter.weights.layout.place_of:
        a, b = adapter.pair(layer, target)
        name = {"q": "attn_q", "o": "attn_output", "down": "ffn_down"}.get(target)
        if name:
            assert torch.equal(found[f"blk.{layer}.{name}.weight.lora_a"], a.to(dtype).float())
            assert torch.equal(found[f"blk.{layer}.{name}.weight.lora_b"], b.to(dtype).float())


def test_every_family_that_can_wear_weights_is_known() -> None:
    assert set(FAMILIES) == set(SUPPORTED)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(
        UnsupportedModel, match=r"^A language model of type 'gpt2' .*: export for peft, or .* gemma3_text"
    ):
        family_of("gpt2")


def test_halves_become_neighbours() -> None:
    rows = torch.arange(2 * 6)[:, None]  # two heads of six
    assert as_neighbours(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert as_neighbours(rows, 1)[:, 0].tolist() == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]


def test_the_rows_of_q_and_k_only(tmp_path: Path) -> None:
    adapter = adapter_for("llama")
    save_file(adapter, tmp_path / "a.gguf")
    found = tensors_of(tmp_path / "a.gguf")
    for target, name, heads in (("q", "attn_q", 4), ("k", "attn_k", 2), ("v", "attn_v", 0), ("up", "ffn_up", 0)):
        a, b = adapter.pair(1, target)
        assert torch.equal(found[f"blk.1.{name}.weight.lora_a"], a)
        expected = as_neighbours(b, heads) if heads else b
        assert torch.equal(found[f"blk.1.{name}.weight.lora_b"], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"factors": "b", "static_rank": 2}, {"factors": "ab"}], ids=str)
def test_a_template_is_the_file_of_each_image(tmp_path: Path, options: dict[str, Any], dtype: torch.dtype) -> None:
    with Template(adapter_for("llama", 1, **options), dtype=dtype) as template:
        for seed in (2, 3, 1):
            adapter = adapter_for("llama", seed, **options)
            template.put(adapter)
            (tmp_path / "template.gguf").write_bytes(bytes(template))
            save_file(adapter, tmp_path / "file.gguf", dtype=dtype, force=True)
            found, expected = tensors_of(tmp_path / "template.gguf"), tensors_of(tmp_path / "file.gguf")
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_template_as_a_c_file() -> None:
    libc = ctypes.CDLL(None)
    libc.fread.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
    with Template(adapter_for()) as template:
        for _ in range(2):  # from its beginning each time
            room = ctypes.create_string_buffer(len(template))
            with template.opened() as file:
                assert libc.fread(room, 1, len(template), file) == len(template)
            assert room.raw == bytes(template)


def test_a_template_takes_only_its_own() -> None:
    with Template(adapter_for(factors="ab")) as template:
        before = bytes(template)
        for other in (
            adapter_for("llama", 1, 2, factors="ab"),
            adapter_for("llama", layers=(0,)),
            adapter_for("qwen2"),
        ):
            with pytest.raises(InputError, match="another layout or another base than the template"):
                template.put(other)
        assert bytes(template) == before


def test_numbers_that_half_precision_cannot_hold(tmp_path: Path) -> None:
    adapter = adapter_for()
    with Template(adapter, dtype=torch.float16) as template:
        adapter.weights.values[0, 0] = 1e6
        with pytest.raises(InputError, match="float16 cannot hold"):
            template.put(adapter)
    with pytest.raises(InputError, match="float16 cannot hold"):
        save_file(adapter, tmp_path / "a.gguf", dtype=torch.float16)
    assert not any(tmp_path.iterdir())


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "a.gguf", shared_model(targets=MERGEABLE)
    save_file(adapter_for(), path)
    check_file(path, model)
    check_file(path, plain_llm(model))
    with pytest.raises(CheckpointError, match=r"was made for the language model owner/name \(fingerprint .*\.$"):
        check_file(path, tiny_llm("llama"))


def test_a_file_that_is_none_of_ours(tmp_path: Path) -> None:
    path, model = tmp_path / "a.gguf", shared_model(targets=MERGEABLE)
    save_file(adapter_for(), path)
    for content in (b"", b"GGUF", b"nonsense" * 100, path.read_bytes()[:300]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.gguf is damaged, or no GGUF adapter of vlora"):
            check_file(path, model)
    with pytest.raises(CheckpointError, match="no GGUF adapter of vlora"):
        check_file(tmp_path / "missing.gguf", model)


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    save_file(adapter_for(), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already: give another place, or replace it with force"):
        save_file(adapter_for("qwen3"), path)
    with pytest.raises(InputError, match="is a folder, and one file is to be written"):
        save_file(adapter_for("qwen3"), tmp_path, force=True)
    assert path.read_bytes() == before
    save_file(adapter_for("qwen3"), path, force=True)
    assert path.read_bytes() != before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_that_becomes_full(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "a.gguf"
    if force:
        save_file(adapter_for(), path)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(InputError, match=r"a\.gguf cannot be written"):
            save_file(adapter_for("qwen3"), path, force=force)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependency, match=r"run `pip install gguf`\.$"):
        save_file(adapter_for(), tmp_path / "a.gguf")
    assert not any(tmp_path.iterdir())
