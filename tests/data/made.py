"""Small files of each format, made here."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.helpers import picture

Write = Callable[..., Path]


def png(seed: int = 0) -> bytes:
    """The bytes of a small image."""
    data = io.BytesIO()
    picture(seed, (6, 7)).save(data, "PNG")
    return data.getvalue()


def llava_row(number: int, **fields: Any) -> dict[str, Any]:
    """A row of LLaVA's JSON, with letters that are not ASCII."""
    turns = [{"from": "human", "value": "<image>\nWas?"}, {"from": "gpt", "value": f"Tür {number}."}]
    return {"id": f"a{number}", "image": f"{number}.png", "conversations": turns} | fields


def messages_row(number: int, **fields: Any) -> dict[str, Any]:
    """A row of messages and images."""
    turns = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    return {"messages": turns, "images": [f"{number}.png"]} | fields


def write_tar(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> Path:
    """A tar of members KEY.SUFFIX."""
    with tarfile.open(path, "w") as tar:
        for key, parts in samples:
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path
