"""A folder of images, with a text of the same name beside each.

photos/a.jpg     photos/a.txt
photos/b/c.png   photos/b/c.txt
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..sample import MARKER, Sample
from .captions import SUFFIXES, Captioned
from .index import hash_of


class FolderSource(Captioned):
    """Images below a folder, in the order of their paths, with a `.txt` of the same name beside each.

    Args:
        folder: where they are; what begins with a dot is left out.
        name: see `Rows`.
        prompts: see `Captioned`.
        augment: see `Rows`.

    Raises:
        DataError: there are none.
    """

    def __init__(self, folder: Path, *, name: str, prompts: Sequence[str] = (), augment: bool = False) -> None:
        super().__init__(name, prompts=prompts, augment=augment)
        self.folder = folder
        found = sorted(_images_below(folder))
        if not found:
            raise DataError(f"{folder} holds no image: give a folder with {', '.join(SUFFIXES)} files.")
        # Bytes side by side in one array: a million paths are 100 MB less than as texts, and quickly pickled.
        self._paths = np.array([os.fsencode(path) for path, _ in found], dtype=np.bytes_)
        self._sizes = np.array([size for _, size in found], dtype=np.uint32)

    def __len__(self) -> int:
        return len(self._paths)

    def length(self, index: int) -> int:
        """See `Rows`."""
        prompt = self.prompt_of(hash_of(self._id(index)))
        return int(self._sizes[index]) + len(MARKER) + len(prompt)

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        id = self._id(index)
        path = self.folder / id
        text = path.with_suffix(".txt")
        try:
            caption = text.read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError as error:
            raise DataError(f"{path} has nothing to learn from: put its text beside it as {text.name}.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{text} is not UTF-8: save it in that encoding.") from error
        except OSError as error:
            raise DataError(f"{text} cannot be read ({error.strerror}): see whether the disk is there.") from error
        return self.captioned(id, str(path), caption, hashed=hash_of(id), where=str(path))

    def _id(self, index: int) -> str:
        return os.fsdecode(bytes(self._paths[index]))


def _images_below(folder: Path) -> Iterator[tuple[str, int]]:
    """Relative paths of images, and the bytes of the text beside each."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if not one.startswith(".")]
        names = set(files)
        for name in files:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES and not name.startswith("."):
                text = os.path.join(parent, f"{stem}.txt")
                size = os.path.getsize(text) if f"{stem}.txt" in names else 0
                yield os.path.relpath(os.path.join(parent, name), folder), size
