"""What every format becomes: a sample, which is images and conversations about them; and a source of samples.

    llava.json, messages.jsonl, captions.csv, folder, tars, data set ──► Source ──► Sample

A sample knows where it was read, so that whatever is wrong with it can be told with a file and a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant"]

MARKER = "<image>"
"""How a text names an image, whatever the model's own token for it is."""


@dataclass(frozen=True)
class Message:
    """One turn. The text names images by `MARKER`, in the order of the sample's images."""

    role: Role
    text: str


Conversation: TypeAlias = tuple[Message, ...]


@dataclass(frozen=True)
class Sample:
    """Images, and conversations about them.

    Args:
        id: unique within its source, and the same whenever the source is read.
        images: paths, or the bytes of image files; empty for plain text.
        conversations: at least one; each is about all the images, and names each of them once.
        where: file and line, or the like, for messages.
    """

    id: str
    images: tuple[str | bytes, ...]
    conversations: tuple[Conversation, ...]
    where: str


class Source(Protocol):
    """Samples that can be read in any order, by their number.

    Reading is safe in forked and spawned workers. `source[i]` raises `DataError` for a sample that cannot be used,
    with its place; whether an image can be decoded is only found out later.
    """

    name: str
    """Unique in a mixture; a sample of it is known as `name/id`."""

    augment: bool
    """Whether images may be mirrored, shifted and scaled."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    @property
    def blocks(self) -> Sequence[int]:
        """Numbers of consecutive samples that lie together on the disk and are best read together; their sum is all."""
        ...

    def length(self, index: int) -> int:
        """Characters of the longest conversation, found without reading an image; for batches of one length."""
        ...
