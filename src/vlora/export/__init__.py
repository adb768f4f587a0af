"""Checkpoints of others -> ours.

| file | what it does |
|---|---|
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
