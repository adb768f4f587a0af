"""A part of the nano set as a source: pictures drawn by their number, a conversation for each turn about one."""

from __future__ import annotations

import io

from PIL import Image

from ..sample import MARKER, Message, Sample
from ..sets.nano.base import Split, open_set
from .base import Rows
from .rules import sample

EPOCH = 100_000
"""Pictures that count as all of a part; there is no end to them."""

LONGEST = len(MARKER) + 64
"""Characters of a long conversation of any part; the true number is known only when a picture is drawn."""


class NanoSource(Rows):
    """One part of the nano set; a picture is drawn when it is read.

    Args:
        part: one of `vlora.data.sets.nano.base.SETS`.
        split: `train` or `test`.
        name: see `Rows`.
        augment: see `Rows`; mirroring would make left right, so leave it.

    Raises:
        InputError: there is no such part or split.
    """

    def __init__(self, part: str, split: Split, *, name: str, augment: bool) -> None:
        super().__init__(name, augment=augment)
        self.pictures = open_set(part, split)

    def __len__(self) -> int:
        return EPOCH

    def length(self, index: int) -> int:
        """See `Rows`."""
        return LONGEST

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        picture = self.pictures.picture(index)
        return sample(
            str(index),
            [_bitmap(picture.image)],
            conversations=[
                (Message("user", MARKER + turn.question), Message("assistant", turn.answer)) for turn in picture.turns
            ],
            where=f"nano set, {self.pictures.name} {self.pictures.split}, picture {index}",
        )


def _bitmap(image: Image.Image) -> bytes:
    """Without compression, which would take longer than the drawing."""
    file = io.BytesIO()
    image.save(file, "BMP")
    return file.getvalue()
