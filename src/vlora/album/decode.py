"""From a found image to what the model looks at; runs in worker processes.

    bytes ─ SHA-256 ─ in the album? ─► done
              │
              └─► RGB pixels ─ image hash ─ in the album? ─► done
                                 │
                                 └─► prepared pixels

Hashing bytes costs a hundredth of decoding them, so a file that was only moved or touched is not decoded again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images import image_hash, open_image
from ..errors import AlbumError, ImageError
from .index import Index
from .sources import Found


class Decoded(NamedTuple):
    """A found image, read.

    Args:
        found: where it is; without its bytes.
        file: SHA-256 of the file.
        image: SHA-256 of the picture, see `vlora.data.image_hash`.
        size: width and height of the picture; of one that the album has, 0 and 0.
        pixels: prepared for the model, `[3, height, width]`; None if the album has the picture.
        reason: why it cannot be read, if it cannot; then there is nothing else.
    """

    found: Found
    file: str = ""
    image: str = ""
    size: tuple[int, int] = (0, 0)
    pixels: NDArray[np.float32] | None = None
    reason: str | None = None


class Decoder:
    """Reads images, and prepares those that an album does not have.

    Args:
        image_processor: of the model.
        album: the folder of the album; None: prepare every image.
    """

    def __init__(self, image_processor: Any, album: Path | None = None) -> None:
        self.image_processor, self.album = image_processor, album
        self._index: Index | None = None  # opened where it is used, in the worker

    def close(self) -> None:
        """Close the index of the album."""
        if self._index is not None:
            self._index.release()

    def __getitem__(self, found: Found) -> Decoded:
        """Read one image; for a DataLoader, of which places are the indices."""
        place = found._replace(data=None)
        if found.reason is not None:
            return Decoded(place, reason=found.reason)
        try:
            return self._read(found, place)
        except ImageError as error:
            return Decoded(place, reason=_of_path(str(error), found.path))

    def _read(self, found: Found, place: Found) -> Decoded:
        data = found.read()
        if found.archive and len(data) < found.bytes:
            raise ImageError(f"{found.path} is cut off, its tar ends too early: get the tar again.")
        file = hashlib.sha256(data).hexdigest()
        known = self._one("SELECT image FROM files WHERE file = ? LIMIT 1", file)
        if known is not None:
            return Decoded(place, file, known)
        picture = open_image(data)
        image = image_hash(picture)
        if self._one("SELECT hash FROM images WHERE hash = ?", image) is not None:
            return Decoded(place, file, image)
        return Decoded(place, file, image, picture.size, self.prepare(picture))

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        """A picture as the model looks at it."""
        return self.image_processor([picture], return_tensors="pt")["pixel_values"][0].numpy()

    def _one(self, query: str, value: str) -> Any:
        if self.album is None:
            return None
        try:
            self._index = self._index or Index(self.album)
            return self._index.value(query, [value])
        except AlbumError:  # no reason to stop here: the writer will look again, and tell
            return None


def _of_path(message: str, path: str) -> str:
    """The decoder knew bytes only; a list of problems names files."""
    return message.replace("the given data", path, 1)
