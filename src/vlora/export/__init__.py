"""Images -> adapters that others load; checkpoints of others -> ours.

| file | what it does |
|---|---|
| `adapter.py` | an image as a LoRA adapter of one language model; its identity |
| `peft.py`, `card.py` | the same for peft, vLLM and SGLang: in memory, or a folder with a model card |
| `gguf.py` | the same for llama.cpp: a file, or bytes in memory that each image patches |
| `llama_cpp.py` | llama.cpp wears it |
| `place.py` | what is written appears when it is complete |
| `authors.py` | what the authors' configuration and tensors are called here |
| `shards.py` | weight files of either form |
| `source.py` | what a checkpoint of the authors is made of |
| `processor.py`, `vicuna_v1.jinja` | its tokenizer, prompts and image processor |
| `plan.py` | what goes where; refuses what does not fit |
| `convert.py` | writes ours |
"""

from __future__ import annotations

from .convert import Conversion, convert_authors

__all__ = ["Conversion", "convert_authors"]
