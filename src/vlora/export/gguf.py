"""An adapter in the form of llama.cpp: a GGUF file, or the same bytes in memory.

    blk.10.attn_v.weight.lora_a  [rank, in_dim]      A turned round
    blk.10.attn_v.weight.lora_b  [out_dim, rank]     B turned round; of q and k its rows in llama.cpp's order

llama.cpp turns the neighbours of a vector by one angle where transformers turns its halves, and stores the rows of
q and k of some families so that both come to the same. What adds to those rows must lie in their order; what reads
the input, `lora_a`, must not change. So all that one image differs from another in is `lora_a` (with factors `ab`
`lora_b` too), always at the same bytes: a `Template` is written once and takes each image in a fraction of the time.

    template = Template(adapter)                                            # the first image
    with template.opened() as file:                                         # a FILE* into memory; no disk
        lora = llama_cpp.llama_adapter_lora_init_from_file_ptr(model, file)
    template.put(eyes.adapter("another.png"))                               # the next one
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError, MissingDependency, UnsupportedModel
from .adapter import Adapter, cast, check_base
from .place import appearing_file, free_file


class Family(NamedTuple):
    """A family as llama.cpp knows it.

    Args:
        architecture: its `general.architecture`.
        neighbours: the rows of q and k are stored for the rotation of neighbours.
    """

    architecture: str
    neighbours: bool


# By `model_type` of transformers. Each is under test, against llama.cpp itself.
FAMILIES = {
    "llama": Family("llama", neighbours=True),
    "mistral": Family("llama", neighbours=True),
    "smollm3": Family("smollm3", neighbours=True),
    "qwen2": Family("qwen2", neighbours=False),
    "qwen3": Family("qwen3", neighbours=False),
    "gemma": Family("gemma", neighbours=False),
    "gemma2": Family("gemma2", neighbours=False),
    "gemma3_text": Family("gemma3", neighbours=False),
}
NAME_OF = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
FINGERPRINT = "vlora.base.fingerprint"
_BYTES_OF_METADATA = 65_536  # more than there ever are


def save_file(adapter: Adapter, path: str | Path, *, dtype: torch.dtype | None = None, force: bool = False) -> int:
    """Write a GGUF file; it appears when it is complete.

    Args:
        adapter: see `adapter_of`.
        path: of a file that does not exist yet.
        dtype: precision of the tensors; None keeps that of the weights.
        force: replace a file that stands there.

    Returns:
        Bytes of the file.

    Raises:
        InputError: the place is taken or cannot be written, or numbers that the precision cannot hold.
        UnsupportedModel: a family that llama.cpp does not know by these names.
        MissingDependency: gguf is not installed.
    """
    destination = free_file(Path(path), force=force)
    dtype = dtype or adapter.weights.values.dtype
    with appearing_file(destination, adapter.numel * dtype.itemsize + _BYTES_OF_METADATA) as place:
        _write(adapter, place, dtype)
        return place.stat().st_size


def check_file(path: str | Path, model: nn.Module) -> None:
    """Refuse a GGUF adapter of another language model than the given one.

    Args:
        path: what `save_file` wrote.
        model: a language model with its head as transformers loads it, or one of ours.

    Raises:
        CheckpointError: another language model, or no exported file.
        MissingDependency: gguf is not installed.
    """
    reader_class = _gguf().GGUFReader
    try:
        fields = reader_class(path).fields
        found = fields[FINGERPRINT].contents()
        name = fields["general.base_model.0.name"].contents() if "general.base_model.0.name" in fields else None
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged, or no GGUF adapter of vlora: export the image again.") from error
    check_base(str(found), model, what=f"The adapter {path}", name=name)


class Template:
    """A GGUF adapter in memory, of which each image replaces only its own part.

    Args:
        adapter: the first image.
        dtype: precision of the tensors; None keeps that of the weights.

    Raises:
        InputError: numbers that the precision cannot hold.
        UnsupportedModel: a family that llama.cpp does not know by these names.
        MissingDependency: gguf is not installed.
    """

    def __init__(self, adapter: Adapter, *, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype or adapter.weights.values.dtype
        self._layout, self._base = adapter.weights.layout, adapter.base
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "adapter.gguf")
            _write(adapter, path, self.dtype, named=False)
            self._offsets = {tensor.name: int(tensor.data_offset) for tensor in _gguf().GGUFReader(path).tensors}
            data = path.read_bytes()
        self._descriptor = _memory_file()
        os.truncate(self._descriptor, len(data))
        self._memory = mmap.mmap(self._descriptor, len(data))
        self._memory[:] = data

    def __len__(self) -> int:
        return len(self._memory)

    def __bytes__(self) -> bytes:
        return self._memory[:]

    def put(self, adapter: Adapter) -> None:
        """Replace what the image generated.

        Raises:
            InputError: an adapter of other targets, layers or rank, or of another base; or numbers that the
                precision cannot hold.
        """
        if adapter.weights.layout != self._layout or adapter.base.fingerprint != self._base.fingerprint:
            raise InputError(
                "This adapter has another layout or another base than the template, whose bytes it cannot take: make "
                "a template for it."
            )
        generated = tuple(f"lora_{factor}" for factor in self._layout.factors)
        for name, tensor in _tensors(adapter):
            if name.endswith(generated):
                self._slot(name, tensor).copy_(cast(tensor, self.dtype))

    @contextmanager
    def opened(self) -> Generator[int]:
        """A C `FILE*` to read the GGUF from, which is closed at the end of the block."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fdopen.restype, libc.fdopen.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_char_p)
        libc.fclose.argtypes = (ctypes.c_void_p,)
        descriptor = os.dup(self._descriptor)
        os.lseek(descriptor, 0, os.SEEK_SET)
        file = libc.fdopen(descriptor, b"rb")
        if not file:
            os.close(descriptor)
            raise OSError(ctypes.get_errno(), "fdopen failed")
        try:
            yield file
        finally:
            libc.fclose(file)

    def close(self) -> None:
        """Free the memory; what llama.cpp has loaded stays."""
        if not self._memory.closed:
            self._memory.close()
            os.close(self._descriptor)

    def __enter__(self) -> Template:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _slot(self, name: str, like: Tensor) -> Tensor:
        """The bytes of a tensor, as one."""
        flat = torch.frombuffer(self._memory, dtype=self.dtype, count=like.numel(), offset=self._offsets[name])
        return flat.view(like.shape)


def family_of(model_type: str) -> Family:
    """A family as llama.cpp knows it.

    Raises:
        UnsupportedModel: names the given family and the supported ones.
    """
    if model_type not in FAMILIES:
        raise UnsupportedModel(
            f"A language model of type {model_type!r} has no tested counterpart in llama.cpp: export for peft, "
            f"or choose one of these families: {', '.join(FAMILIES)}."
        )
    return FAMILIES[model_type]


def as_neighbours(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k in the order in which llama.cpp stores them: the halves of each head take turns.

    Args:
        rows: `[heads * head_dim, ...]`.
        heads: of q, or the key-value heads of k.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _tensors(adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its name in llama.cpp, in the precision of the weights."""
    base = adapter.base
    heads = {"q": base.heads, "k": base.kv_heads} if family_of(base.family).neighbours else {}
    for layer, target in adapter.weights.layout.place_of:
        a, b = adapter.pair(layer, target)
        name = f"blk.{layer}.{NAME_OF[target]}.weight"
        yield f"{name}.lora_a", a
        yield f"{name}.lora_b", as_neighbours(b, heads[target]) if target in heads else b


def _write(adapter: Adapter, path: Path, dtype: torch.dtype, *, named: bool = True) -> None:
    """A GGUF file; `named` writes which images it is of."""
    gguf = _gguf()
    kinds = gguf.GGMLQuantizationType
    kind = {torch.float32: kinds.F32, torch.float16: kinds.F16, torch.bfloat16: kinds.BF16}[dtype]
    writer = gguf.GGUFWriter(path, family_of(adapter.base.family).architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
    writer.add_string(FINGERPRINT, adapter.base.fingerprint)
    if adapter.base.name:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, adapter.base.name)
    if named and adapter.images:
        writer.add_array("vlora.images", [f"{image.kind} sha256:{image.sha256}" for image in adapter.images])
    for name, tensor in _tensors(adapter):
        written = cast(tensor, dtype).view(torch.uint8).numpy()  # numpy has no bfloat16
        writer.add_tensor(name, written, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _memory_file() -> int:
    """A file without a name; in memory, where the platform has that."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vlora-adapter")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingDependency("A GGUF file is written with the package gguf: run `pip install gguf`.") from error
    return gguf
