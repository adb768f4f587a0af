"""LLaVA's JSON, of the pre-training and of the instruction mix.

    [{"id": "7", "image": "a/7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                       {"from": "gpt", "value": "A cat."}]}, ...]

Rows without an image are plain text; `image` may be a list. What `gpt` says before anybody has asked is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import DataError
from ..sample import Message, Role, Sample
from .json_rows import JsonRows
from .rules import as_list, image_at, sample

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class LlavaSource(JsonRows):
    """See above."""

    kind = "llava"

    def measure(self, row: dict[str, Any]) -> int:
        """See `JsonRows`."""
        return sum(len(turn["value"]) for turn in row["conversations"])

    def parse(self, row: dict[str, Any], *, id: str, where: str) -> Sample:
        """See `JsonRows`."""
        images = [image_at(one, self.root, where) for one in as_list(row.get("image", row.get("images")))]
        return from_turns(row.get("conversations"), id=id, images=images, where=where)


def from_turns(turns: Any, *, id: str, images: Sequence[str | bytes], where: str) -> Sample:
    """The sample of turns as LLaVA writes them.

    Args:
        turns: as they were read.
        id: of the sample.
        images: of the sample.
        where: file and line.

    Raises:
        DataError: they cannot be used.
    """
    if not isinstance(turns, list) or not turns:
        raise DataError(f'{where} has no conversations: give a list of {{"from": "human", "value": "..."}}.')
    messages = [_message(turn, where) for turn in turns]
    first = next((number for number, one in enumerate(messages) if one.role != "system"), 0)
    if messages[first].role == "assistant":
        del messages[first]
    return sample(id, images, conversations=[messages], where=where)


def _message(turn: Any, where: str) -> Message:
    speaker, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None or not isinstance(text, str):
        raise DataError(
            f"{where} has a turn from {speaker!r} with a value of type {type(text).__name__}: "
            "give from as human, gpt or system, and a text as value."
        )
    return Message(role, text)
