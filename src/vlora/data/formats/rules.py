"""What every sample must keep to, whatever its format; and where its images lie.

- A system message may come first; then user and assistant take turns. What comes after the last answer is nobody's.
- Somebody answers something: without a word of an assistant a sample teaches nothing.
- Each image is named once, in a message of the user (or system). A conversation that names none of its images gets
  all the markers at the start of its first user message. An assistant's `<image>` is text.
- Paths begin at the image folder. Absolute ones, and ones that leave it by `..`, are taken as they are: the data are
  the user's own. Addresses are refused, since nothing is fetched.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

from ...errors import DataError
from ..sample import MARKER, Conversation, Message, Role, Sample

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
# No path is that long, and no image so small.
_LONG = 256


def sample(id: str, images: Sequence[str | bytes], *, conversations: Iterable[Sequence[Message]], where: str) -> Sample:
    """A sample that keeps to the rules above.

    Raises:
        DataError: it does not.
    """
    checked = tuple(check(one, len(images), where) for one in conversations)
    if not checked:
        raise DataError(f"{where} has no conversation: give at least one question with its answer.")
    return Sample(id, tuple(images), checked, where)


def check(messages: Sequence[Message], images: int, where: str) -> Conversation:
    """A conversation that keeps to the rules above, with markers for all its images.

    Args:
        messages: as they were read.
        images: how many the sample has.
        where: file and line.

    Raises:
        DataError: roles out of turn, markers for other images than there are, or nothing to learn from.
    """
    turns = [one for one in messages if one.role != "system"]
    if any(one.role == "system" for one in messages[1:]):
        raise DataError(f"{where} has a system message after the first message: put it first, and give only one.")
    for number, one in enumerate(turns):
        expected: Role = "assistant" if number % 2 else "user"
        if one.role != expected:
            raise DataError(
                f"{where} has a message of the {one.role} where the {expected} should speak (message {number + 1}): "
                "user and assistant take turns, the user first."
            )
    if not any(one.role == "assistant" and one.text.strip() for one in turns):
        raise DataError(f"{where} has nothing to learn from: give at least one answer of the assistant with text.")
    named = sum(one.text.count(MARKER) for one in messages if one.role != "assistant")
    if named == images:
        return tuple(messages)
    if named:
        raise DataError(
            f"{where} names {named} image{_s(named)} by {MARKER} and has {images}: name each image once, or none."
        )
    first = next(number for number, one in enumerate(messages) if one.role == "user")
    marked = Message("user", "\n".join([MARKER * images, messages[first].text]).strip())
    return (*messages[:first], marked, *messages[first + 1 :])


def image_at(value: object, root: str, where: str) -> str | bytes:
    """An image as data files name it.

    Args:
        value: a path, `{"path": ..., "bytes": ...}`, bytes, or base64 with or without `data:image/...;base64,`.
        root: where relative paths begin.
        where: file and line.

    Returns:
        A path, or the bytes of an image file.

    Raises:
        DataError: none of these.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        data, path = fields.get("bytes"), fields.get("path")
        if data is not None:
            return data if isinstance(data, bytes) else _decoded(str(data), where)
        value = path
    if not isinstance(value, str) or not value:
        raise DataError(f"{where} has an image of type {type(value).__name__}: give a path, base64, or path and bytes.")
    if value.startswith("data:"):
        return _decoded(value.partition(",")[2], where)
    if len(value) >= _LONG and _BASE64.fullmatch(value):
        return _decoded(value, where)
    if _ADDRESS.match(value):
        raise DataError(f"{where} has the address {value[:80]!r} as an image: download it first and give its path.")
    return os.path.join(root, value)


def as_list(value: object) -> list[object]:
    """One, several or none as a list."""
    if value is None or value == "":
        return []
    return list(cast("Sequence[object]", value)) if isinstance(value, list | tuple) else [value]


def characters(conversations: Iterable[Iterable[Message]]) -> int:
    """Of the longest conversation."""
    return max((sum(len(one.text) for one in messages) for messages in conversations), default=0)


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where} has an image that is not valid base64: encode the bytes of its file anew.") from error


def _s(count: int) -> str:
    return "" if count == 1 else "s"
