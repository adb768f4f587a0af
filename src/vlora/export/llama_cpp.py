"""llama.cpp, which knows nothing of images, sees one: the little of its C interface that this takes.

    with LlamaCpp("model.gguf") as llm:
        llm.wear(template)                     # from memory; or a path, or None to take off what is worn
        llm.complete("<prompt>", max_new_tokens=16)

Through llama-cpp-python's low-level functions, which mirror `llama.h`; the high-level class can load an adapter only
once, from a disk.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError, MissingDependency
from .gguf import Template

INSTALL = 'pip install "vlora-mllm[llama-cpp]"'


class LlamaCpp:
    """A model in llama.cpp that wears one adapter at a time. Not for several threads at once.

    Args:
        path: a GGUF file.
        threads: of the computation; None takes llama.cpp's choice.
        context: the longest text in tokens.
        exact: keep keys and values in float32, for comparisons; else in float16, as llama.cpp does.

    Raises:
        MissingDependency: llama-cpp-python is not installed.
        CheckpointError: not a model that llama.cpp can load.
    """

    def __init__(
        self, path: str | Path, *, threads: int | None = None, context: int = 512, exact: bool = False
    ) -> None:
        self._api = api = _llama_cpp()
        self._model = self._context = self._adapter = None
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)  # what goes wrong is raised
        api.llama_backend_init()
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise CheckpointError(
                f"{path} is missing, or no model that llama.cpp can load: give a GGUF of a whole model."
            )
        options = api.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = context
        if threads is not None:
            options.n_threads = options.n_threads_batch = threads
        if exact:
            options.type_k = options.type_v = api.GGML_TYPE_F32
            options.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = api.llama_init_from_model(self._model, options)
        if not self._context:
            raise InputError(f"llama.cpp has no memory for a context of {context} tokens: give a shorter one.")
        self._vocabulary = api.llama_model_get_vocab(self._model)
        self._length = context  # more at once would end the process

    def wear(self, adapter: Template | str | Path | None) -> None:
        """Wear an adapter in place of the one before; None leaves the model bare.

        Raises:
            CheckpointError: an adapter that this model cannot take.
        """
        api = self._api
        api.llama_set_adapters_lora(self._context, None, 0, None)
        if self._adapter:
            api.llama_adapter_lora_free(self._adapter)
            self._adapter = None
        if adapter is None:
            return
        if isinstance(adapter, Template):
            with adapter.opened() as file:
                self._adapter = api.llama_adapter_lora_init_from_file_ptr(self._model, file)
        else:
            self._adapter = api.llama_adapter_lora_init(self._model, os.fsencode(adapter))
        if not self._adapter:
            what = "The adapter in memory" if isinstance(adapter, Template) else str(adapter)
            raise CheckpointError(
                f"{what} is missing, damaged, or of another family or size than the model in llama.cpp."
            )
        one = (api.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        api.llama_set_adapters_lora(self._context, one, 1, (ctypes.c_float * 1)(1.0))

    def tokens(self, text: str) -> list[int]:
        """Token ids of a prompt, whose special tokens are written out in it."""
        data = text.encode()
        room = (self._api.llama_token * (len(data) + 8))()
        count = self._api.llama_tokenize(self._vocabulary, data, len(data), room, len(room), False, True)
        return list(room[:count])

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits behind each token of a text, `[text, vocabulary]`."""
        self.clear()
        api, count = self._api, self._fitting(len(ids))
        batch = api.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for position, token in enumerate(ids):
                batch.token[position], batch.pos[position] = token, position
                batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, True
            self._decode(batch)
            rows = [api.llama_get_logits_ith(self._context, position) for position in range(count)]
            return torch.stack([self._row(row) for row in rows])
        finally:
            api.llama_batch_free(batch)

    def complete(self, prompt: str | Sequence[int], *, max_new_tokens: int = 64) -> str:
        """Go on greedily, until the model ends its answer."""
        ids = self.tokens(prompt) if isinstance(prompt, str) else list(prompt)
        self.clear()
        written: list[int] = []
        self._fitting(len(ids) + max_new_tokens)
        following = self.step(ids)
        while len(written) < max_new_tokens and not self._api.llama_vocab_is_eog(self._vocabulary, following):
            written.append(following)
            if len(written) < max_new_tokens:
                following = self.step([following])
        return self.text(written).strip()

    def step(self, ids: Sequence[int]) -> int:
        """Read further tokens and give the most likely next one."""
        tokens = (self._api.llama_token * self._fitting(len(ids)))(*ids)
        self._decode(self._api.llama_batch_get_one(tokens, len(ids)))
        return int(self._row(self._api.llama_get_logits_ith(self._context, -1)).argmax())

    def clear(self, keep: int = 0) -> None:
        """Forget what was read, but for the first so many tokens."""
        memory = self._api.llama_get_memory(self._context)
        self._api.llama_memory_seq_rm(memory, 0, keep, -1)

    def text(self, ids: Sequence[int]) -> str:
        """What tokens read, without the special ones."""
        pieces: list[bytes] = []
        for token in ids:
            room = ctypes.create_string_buffer(256)
            count = self._api.llama_token_to_piece(self._vocabulary, token, room, len(room), 0, False)
            pieces.append(room.raw[: max(0, count)])
        return b"".join(pieces).decode("utf-8", "replace")

    def close(self) -> None:
        """Free everything."""
        if self._context:
            self.wear(None)
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _fitting(self, length: int) -> int:
        if not 0 < length <= self._length:
            raise InputError(f"A text of {length} tokens was given; llama.cpp's context takes 1 to {self._length}.")
        return length

    def _decode(self, batch: Any) -> None:
        if self._api.llama_decode(self._context, batch):
            raise InputError("llama.cpp could not go on, most likely because its context is full: give a longer one.")

    def _row(self, logits: Any) -> Tensor:
        count = self._api.llama_vocab_n_tokens(self._vocabulary)
        row = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * count)).contents
        return torch.frombuffer(row, dtype=torch.float32, count=count).clone()


def _llama_cpp() -> Any:
    try:
        import llama_cpp  # pyright: ignore[reportMissingImports]  # an extra that compiles
    except ImportError as error:
        raise MissingDependency(
            f"llama.cpp is not installed: run `{INSTALL}`, which compiles it in minutes."
        ) from error
    return llama_cpp
