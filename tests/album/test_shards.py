"""Shards: what is packed comes back, as far as its precision goes, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlora.album.shards import PRECISIONS, Shards, check_precision, checksums, pack, unpack, write
from vlora.errors import AlbumError, InputError
from vlora.model import VisualParameters

NAMES = [f"{number:064x}" for number in range(5)]


@pytest.fixture
def values() -> torch.Tensor:
    values = torch.randn(5, 3, 2, 16) * torch.logspace(-3, 3, 5)[:, None, None, None]
    values[1, 0] = 0  # a scale of zero
    return values


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_error_of_a_precision(values: torch.Tensor, dtype: str) -> None:
    packed = pack(values, dtype)  # type: ignore[arg-type]
    back = unpack(packed)
    assert back.dtype == torch.float32
    # bfloat16 keeps 8 bits of each number; int8 half a step of 1/127 of the largest of its (image, target, layer).
    bound = {
        "float32": torch.zeros(()),
        "bfloat16": values.abs() * 2**-8,
        "int8": values.abs().amax(-1, keepdim=True) * (0.5 / 127) * (1 + 1e-5),
    }[dtype]
    assert ((back - values).abs() <= bound).all()
    assert (
        sum(tensor.nbytes for tensor in packed.values())
        == {
            "float32": values.numel() * 4,
            "bfloat16": values.numel() * 2,
            "int8": values.numel() + 5 * 3 * 2 * 4,
        }[dtype]
    )


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_written_and_read(values: torch.Tensor, tmp_path: Path, dtype: str) -> None:
    packed = pack(values, dtype)  # type: ignore[arg-type]
    name, size = write(tmp_path / "shards", packed, NAMES, {})
    assert [path.name for path in (tmp_path / "shards").iterdir()] == [name]
    assert (tmp_path / "shards" / name).stat().st_size == size
    shards = Shards(tmp_path / "shards")
    names, some = shards.rows(name, [3, 0])
    assert names == [NAMES[3], NAMES[0]]
    assert torch.equal(unpack(some), unpack(packed)[[3, 0]])
    assert checksums(some) == [checksums(packed)[row] for row in (3, 0)]
    everything, names = shards.whole(name)
    assert names == NAMES
    assert torch.equal(unpack(everything), unpack(packed))
    if dtype != "int8":
        assert torch.equal(VisualParameters.load(tmp_path / "shards" / name).values, packed["visual_parameters"])


def test_checksums_see_every_byte(values: torch.Tensor) -> None:
    packed = pack(values, "int8")
    before = checksums(packed)
    packed["scales"][2, 1, 1] *= 1.0001
    packed["visual_parameters"][4, 0, 0, 0] ^= 1
    assert [a == b for a, b in zip(before, checksums(packed), strict=True)] == [True, True, False, True, False]


def test_damage(values: torch.Tensor, tmp_path: Path) -> None:
    name, _ = write(tmp_path / "shards", pack(values, "float32"), NAMES, {})
    path = tmp_path / "shards" / name
    with pytest.raises(AlbumError, match="damaged"):
        Shards(tmp_path / "shards").rows(name, [5])
    path.write_bytes(path.read_bytes()[:-1])
    for read in (lambda s: s.whole(name), lambda s: s.rows(name, [0])):
        with pytest.raises(AlbumError, match="prune --damaged"):
            read(Shards(tmp_path / "shards"))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        Shards(tmp_path / "shards").rows(name, [0])


def test_few_files_are_open(values: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlora.album.shards.MAX_OPEN", 3)
    shards = Shards(tmp_path / "shards")
    names = [write(shards.folder, pack(values[:1], "float32"), NAMES[:1], {})[0] for _ in range(6)]
    for name in names:
        shards.rows(name, [0])
    assert list(shards._open) == names[-3:]


def test_unknown_precision() -> None:
    with pytest.raises(InputError, match="float32, bfloat16, int8"):
        check_precision("int4")
