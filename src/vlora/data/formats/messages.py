"""Messages and images, as TRL and the chat templates of Hugging Face have them.

    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
                  {"role": "assistant", "content": "A cat."}], "images": ["a/7.jpg"]}

`content` is a text, in which `<image>` names an image, or a list of blocks. A block of an image may hold the image
itself; otherwise it stands for the next of `images`: paths, `{"bytes", "path"}`, or base64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

from ...errors import DataError
from ..sample import MARKER, Message, Role, Sample
from .json_rows import JsonRows
from .rules import as_list, image_at, sample

_BLOCKS = "give text or blocks of type text and image"


class MessagesSource(JsonRows):
    """See above, as JSON."""

    kind = "messages"

    def __init__(
        self, path: Path, *, name: str, images: Path | None, augment: bool, columns: dict[str, str] | None = None
    ) -> None:
        self.columns = columns or {}
        self.kind = f"messages {self.columns.get('messages', 'messages')}"
        super().__init__(path, name=name, images=images, augment=augment)

    def measure(self, row: dict[str, Any]) -> int:
        """See `JsonRows`."""
        return measure(row[self.columns.get("messages", "messages")])

    def parse(self, row: dict[str, Any], *, id: str, where: str) -> Sample:
        """See `JsonRows`."""
        return from_messages(row, id=id, where=where, root=self.root, columns=self.columns)


def measure(messages: Any) -> int:
    """Characters of some messages, as they were read."""
    total = 0
    for one in messages:
        content = one["content"]
        total += len(content) if isinstance(content, str) else sum(len(part.get("text") or "") for part in content)
    return total


def from_messages(row: dict[str, Any], *, id: str, where: str, root: str, columns: dict[str, str]) -> Sample:
    """The sample of a row with messages.

    Args:
        row: of a JSON or Parquet file.
        id: of the sample.
        where: file and line.
        root: where relative paths of images begin.
        columns: names of `messages` and `images` in the row, where they are others.

    Raises:
        DataError: the row cannot be used.
    """
    name = columns.get("messages", "messages")
    given: Any = row.get(name)
    if not isinstance(given, list) or not given:
        raise DataError(f'{where} has no {name}: give a list of {{"role": "user", "content": "..."}}.')
    listed = [image_at(one, root, where) for one in as_list(row.get(columns.get("images", "images")))]
    if not any(isinstance(one, dict) and _holds_image(cast("dict[str, Any]", one)) for one in given):
        return sample(id, listed, conversations=[[_message(one, where) for one in given]], where=where)
    # Blocks that hold their image stand among others that take the next of the list.
    images: list[str | bytes] = []
    waiting = iter(listed)
    messages: list[Message] = []
    for one in given:
        messages.append(_message(one, where))
        for block in one["content"] if isinstance(one["content"], list) else ():
            if block.get("type") == "image":
                inline = _image_of(block)
                found = next(waiting, None) if inline is None else image_at(inline, root, where)
                images += [] if found is None else [found]
    return sample(id, [*images, *waiting], conversations=[messages], where=where)


def _holds_image(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(
        isinstance(block, dict) and _image_of(cast("dict[str, Any]", block)) is not None
        for block in cast("list[Any]", content)
    )


def _image_of(block: dict[str, Any]) -> Any:
    keys = ("image", "path", "base64", "bytes") if block.get("type") == "image" else ()
    return next((block[key] for key in keys if block.get(key) is not None), None)


def _message(one: Any, where: str) -> Message:
    role, content = (one.get("role"), one.get("content")) if isinstance(one, dict) else (None, None)
    if role not in get_args(Role):
        raise DataError(f"{where} has a message with role {role!r}: give user, assistant or system.")
    role = cast("Role", role)
    if isinstance(content, str):
        return Message(role, content)
    if not isinstance(content, list):
        raise DataError(f"{where} has content of type {type(content).__name__}: {_BLOCKS}.")
    return Message(role, "".join(_block(block, where) for block in cast("list[Any]", content)))


def _block(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "image":
        return MARKER
    text = block.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise DataError(f"{where} has a block of type {kind!r} without a text or an image: {_BLOCKS}.")
    return text
