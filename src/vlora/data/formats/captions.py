"""Images with captions in a CSV or TSV file.

    image,caption
    a.jpg,"A cat, asleep."

A caption is what the assistant says. What the user says is chosen among `prompts` by a hash of the id, the same
whenever the data are read; without prompts the user shows the image and says nothing.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..sample import MARKER, Message, Sample
from .base import Rows
from .index import Columns, hash_of, index_of, repeated
from .json_rows import check_encoding
from .rules import image_at, sample

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Of files that are taken for images."""

USUAL = {
    "image": ("image", "image_path", "filepath", "file_path", "file_name", "filename", "file", "path", "img"),
    "caption": ("caption", "text", "title", "captions", "description"),
    "id": ("id", "key", "uid"),
}
"""Names of columns that need not be named, in either case."""


class Captioned(Rows):
    """A source of images with one text each.

    Args:
        name: see `Rows`.
        prompts: what the user may say.
        augment: see `Rows`.
    """

    def __init__(self, name: str, *, prompts: Sequence[str], augment: bool) -> None:
        super().__init__(name, augment=augment)
        self.prompts = tuple(prompts)

    def prompt_of(self, hashed: int) -> str:
        """What the user says to the sample whose id has this hash."""
        return self.prompts[hashed % len(self.prompts)] if self.prompts else ""

    def captioned(self, id: str, image: str | bytes, caption: str, *, hashed: int, where: str) -> Sample:
        """The sample of an image and its caption."""
        return captioned(id, [image], caption, prompt=self.prompt_of(hashed), where=where)


class TableSource(Captioned):
    """A CSV or TSV file; the columns are found by their names, or in a file without a header by what they hold.

    Args:
        path: the file; the separator is a tab if its first line has one, else a comma.
        name: see `Rows`.
        images: where relative paths of images begin; None: in the file's folder.
        prompts: see `Captioned`.
        columns: names of `image`, `caption`, `id`; or their numbers, from 0, if there is no header.
        augment: see `Rows`.

    Raises:
        DataError: the file is no such thing.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        images: Path | None,
        prompts: Sequence[str] = (),
        columns: dict[str, str] | None = None,
        augment: bool = False,
    ) -> None:
        super().__init__(name, prompts=prompts, augment=augment)
        self.path, self.root = path, str(images or path.parent)
        self.separator, self.has_header, self.columns = _layout(path, columns or {})
        kind = f"captions {self.separator} {self.has_header} {sorted(self.columns.items())}"
        self._index = index_of([path], kind, build=self._scan)
        if not len(self._index):
            raise DataError(f"{path} holds no sample: give a line for each image, below the header.")

    def __len__(self) -> int:
        return len(self._index)

    @property
    def repeats(self) -> int:
        """See `Rows`."""
        return int(self._index["again"].sum())

    def length(self, index: int) -> int:
        """See `Rows`."""
        prompt = self.prompt_of(int(self._index["hash"][index]))
        return int(self._index["characters"][index]) + len(MARKER) + len(prompt)

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        start, end, line = (int(self._index[name][index]) for name in ("start", "end", "line"))
        where = f"{self.path} line {line}"
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                text = file.read(end - start).decode("utf-8").removeprefix("\ufeff")
        except OSError as error:
            raise DataError(f"{where} cannot be read ({error.strerror}): see whether the disk is there.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8: save the file in that encoding.") from error
        cells = next(csv.reader(text.splitlines(keepends=True), delimiter=self.separator), [])
        if max(self.columns.values()) >= len(cells):
            raise DataError(
                f"{where} has {len(cells)} columns, fewer than its header or its first line: quote texts that hold a "
                "separator or a line break."
            )
        id = cells[self.columns["id"]] if "id" in self.columns else str(index + 1)
        if self._index["again"][index]:
            id = f"{id}#{index + 1}"
        image = image_at(cells[self.columns["image"]].strip(), self.root, where)
        hashed = int(self._index["hash"][index])
        return self.captioned(id, image, cells[self.columns["caption"]].strip(), hashed=hashed, where=where)

    def _scan(self) -> Columns:
        columns = {name: array("Q") for name in ("start", "end", "line", "hash")}
        characters = array("I")
        for number, (start, end, line, cells) in enumerate(_records(self.path, self.separator, self.has_header), 1):
            whole = max(self.columns.values()) < len(cells)
            id = cells[self.columns["id"]] if whole and "id" in self.columns else str(number)
            for name, value in zip(columns, (start, end, line, hash_of(id)), strict=True):
                columns[name].append(value)
            characters.append(len(cells[self.columns["caption"]]) if whole else 0)
        found: dict[str, np.ndarray] = {name: np.asarray(values, dtype=np.uint64) for name, values in columns.items()}
        return found | {
            "characters": np.asarray(characters, dtype=np.uint32),
            "again": repeated(found["hash"]),
        }


def _records(path: Path, separator: str, has_header: bool) -> Iterator[tuple[int, int, int, list[str]]]:
    """Where each record lies, its line, and its cells, read as Latin-1; blank lines are passed over."""
    place = line = 0
    try:
        with path.open("rb") as file:

            def lines() -> Iterator[str]:
                nonlocal place, line
                for raw in file:
                    place, line = place + len(raw), line + 1
                    yield raw.decode("latin-1")

            start, first = 0, 1
            for cells in csv.reader(lines(), delimiter=separator):
                if any(cells) and not (has_header and first == 1):
                    yield start, place, first, cells
                start, first = place, line + 1
    except csv.Error as error:
        raise DataError(f"{path} cannot be split into columns at line {line} ({error}): quote its texts.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a CSV or TSV file.") from error


def _layout(path: Path, columns: dict[str, str]) -> tuple[str, bool, dict[str, int]]:
    """The separator, whether there is a header, and which column is what."""
    try:
        with path.open("rb") as file:
            check_encoding(path, file.read(4))
            file.seek(0)
            raw = file.readline(1 << 20)
        head = raw.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a CSV or TSV file.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} line 1 is not UTF-8: save the file in that encoding.") from error
    separator = "\t" if "\t" in head else ","
    cells = [cell.strip() for cell in next(csv.reader([head], delimiter=separator), [])]
    unknown = sorted(set(columns) - set(USUAL))
    if unknown:
        raise DataError(f"columns names {unknown[0]!r}, which captions do not have: name {', '.join(USUAL)}.")
    if columns and all(value.isdecimal() and value not in cells for value in columns.values()):
        places = {name: int(value) for name, value in columns.items()}
    else:
        places = {name: place for name in USUAL if (place := _place(name, cells, columns)) is not None}
        if "image" in places and "caption" in places:
            return separator, True, places
        places = _by_content(cells) if not columns else places
    if {"image", "caption"} - set(places) or max(places.values()) >= len(cells):
        raise DataError(
            f"{path} has the columns {', '.join(map(repr, cells[:10]))}, among which image and caption are not known: "
            "name them by columns, or number them from 0 if there is no header."
        )
    return separator, False, places


def _place(name: str, cells: list[str], columns: dict[str, str]) -> int | None:
    names = (columns[name],) if name in columns else USUAL[name]
    lowered = [cell.lower() for cell in cells]
    return next((lowered.index(one.lower()) for one in names if one.lower() in lowered), None)


def _by_content(cells: list[str]) -> dict[str, int]:
    """Of a file of two columns without a header: the image is the one that looks like it."""
    found = [number for number, cell in enumerate(cells) if cell.lower().endswith(SUFFIXES)]
    return {"image": found[0], "caption": 1 - found[0]} if len(cells) == 2 and len(found) == 1 else {}


def captioned(id: str, images: Sequence[str | bytes], caption: str, *, prompt: str, where: str) -> Sample:
    """The sample of images and their caption.

    Args:
        id: of the sample.
        images: of the sample.
        caption: what the assistant says.
        prompt: what the user says beside showing the images; may be empty.
        where: for messages.

    Raises:
        DataError: the caption is empty.
    """
    asked = "\n".join(part for part in (MARKER * len(images), prompt) if part)
    turns = (Message("user", asked), Message("assistant", caption))
    return sample(id, images, conversations=[turns], where=where)
