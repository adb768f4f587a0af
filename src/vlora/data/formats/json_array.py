"""The items of a JSON array that is too large to be parsed at once, and where each of them lies.

Bytes are read as Latin-1, in which every byte is a character: JSON's own signs are the same in it, and places in the
text are places in the file. The standard library's parser, which is written in C, finds the end of an item.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ...errors import DataError

CHUNK = 1 << 23
"""Bytes read at a time."""

LARGEST = 1 << 29
"""Bytes of an item, beyond which the file is taken for damaged."""

_SPACE = " \t\r\n"


class Found(NamedTuple):
    """A row where it lies; `row` is None where it is not JSON. Its text is decoded as Latin-1."""

    start: int
    end: int
    line: int
    row: Any


class _Window:
    """A part of the file that slides over it."""

    def __init__(self, file: BinaryIO, begin: int) -> None:
        self.file, self.offset = file, begin
        self.text, self.at = "", 0
        self._line, self._counted = 1, 0

    def more(self) -> bool:
        """Forget what is behind, and read on."""
        self.line()
        data = self.file.read(max(CHUNK, len(self.text) - self.at)).decode("latin-1")
        self.text = self.text[self.at :] + data
        self.offset += self.at
        self.at = self._counted = 0
        return bool(data)

    def peek(self) -> str:
        """The next character that is no space, without taking it; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def line(self) -> int:
        """The line it is at."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def item(self) -> tuple[Any, int]:
        """The value that begins here and its length; (None, 0) if there is none that is whole and right."""
        while True:
            value, length = None, 0
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
                length = end - self.at
                if end < len(self.text):  # a number at the end of the window might go on behind it
                    return value, length
            except (ValueError, RecursionError):
                pass
            if len(self.text) - self.at > LARGEST or not self.more():
                return value, length


def array_items(path: Path, file: BinaryIO, begin: int) -> Iterator[Found]:
    """Each item of the array in a file.

    Args:
        path: for messages.
        file: at the place where the array begins.
        begin: that place.

    Raises:
        DataError: the array is damaged, or something follows it.
    """
    window = _Window(file, begin)
    window.peek()
    window.at += 1
    wanted = "value or end"
    while (sign := window.peek()) != "]":
        if not sign:
            raise DataError(f"{path} ends at line {window.line()}, within its array: it was cut off, get it again.")
        if wanted == "comma":
            if sign != ",":
                raise _damaged(path, window)
            window.at, wanted = window.at + 1, "value"
            continue
        line = window.line()
        value, length = window.item()
        if not length:
            raise _damaged(path, window)
        yield Found(window.offset + window.at, window.offset + window.at + length, line, value)
        window.at, wanted = window.at + length, "comma"
    window.at += 1
    if wanted == "value" or window.peek():
        raise _damaged(path, window)


def _damaged(path: Path, window: _Window) -> DataError:
    return DataError(
        f"{path} is no JSON array of objects at line {window.line()}, or cut off in the object that begins there: "
        "correct it, or get it again."
    )
