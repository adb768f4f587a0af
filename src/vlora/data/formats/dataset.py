"""Data sets of Hugging Face: saved on the disk, of the hub, or made from local files; or streamed.

What a row is, its columns say:

    messages (+ images)            as `messages`
    conversations (+ image)        as `llava`
    image, question, answer        one question
    image, caption or text         as `captions`

Images are not decoded here: their files are handed on as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..sample import Message, Sample
from .base import Rows
from .captions import USUAL, captioned
from .index import hash_of, repeated
from .llava import from_turns
from .messages import from_messages, measure
from .optional import needed
from .rules import as_list, characters, image_at, sample

_FILES = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


class DatasetSource(Rows):
    """See above.

    Args:
        path: a folder of `save_to_disk`, a folder or file that `load_dataset` reads, or a hub id.
        name: see `Rows`.
        split: of the data set.
        images: where relative paths of images begin.
        prompts: see `Captioned`.
        columns: names of columns where they are not the usual.
        augment: see `Rows`.

    Raises:
        DataError: it cannot be loaded, has no such split, or no columns that are known.
        MissingDependency: the library is not installed.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str,
        split: str,
        images: Path | None = None,
        prompts: Sequence[str] = (),
        columns: dict[str, str] | None = None,
        augment: bool = False,
    ) -> None:
        super().__init__(name, augment=augment)
        self.path = path
        data = _undecoded(_load(path, split, streaming=False))
        self.reader = RowReader(path, data.column_names, root=str(images or "."), prompts=prompts, columns=columns)
        self.data = data
        if not len(data):
            raise DataError(f"The data set {path!r} holds no row in {split!r}: choose another split.")
        self._texts = data.select_columns(self.reader.text_columns)
        self._again: Any = None
        if id := self.reader.id:
            hashes = (hash_of(str(one[id])) for one in data.select_columns([id]))
            self._again = repeated(np.fromiter(hashes, dtype=np.uint64, count=len(data)))

    def __len__(self) -> int:
        return len(self.data)

    @property
    def repeats(self) -> int:
        """See `Rows`."""
        return 0 if self._again is None else int(self._again.sum())

    def length(self, index: int) -> int:
        """See `Rows`."""
        return self.reader.length(self._texts[index])

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        again = self._again is not None and bool(self._again[index])
        return self.reader.read(self.data[index], index + 1, again=again)


class RowReader:
    """Rows of a data set as samples.

    Args:
        path: of the data set, for messages.
        there: its columns.
        root: where relative paths of images begin.
        prompts: see `Captioned`.
        columns: names of columns where they are not the usual.

    Raises:
        DataError: no columns that are known.
    """

    def __init__(
        self, path: str, there: Sequence[str], *, root: str, prompts: Sequence[str], columns: dict[str, str] | None
    ) -> None:
        self.path, self.root, self.columns = path, root, columns or {}
        missing = next((one for one in self.columns.values() if one not in there), None)
        if missing is not None:
            raise DataError(
                f"The data set {path!r} has the columns {_listed(there)} and no {missing!r}: correct columns."
            )
        self.names = {name: self._find(name, there) for name in ("messages", "conversations", "question", "answer")}
        self.names |= {name: self._find(name, there, *USUAL[name]) for name in ("image", "caption", "id")}
        self.names["images"] = self._find("images", there)
        self.id = self.names["id"]
        self.prompts = tuple(prompts)
        self._as: Callable[[dict[str, Any], str, str], Sample] = self._kind()
        texts = ("messages", "conversations", "question", "answer", "caption")
        self.text_columns = [found for name in texts if (found := self.names[name])]

    def read(self, row: dict[str, Any], number: int, *, again: bool) -> Sample:
        """The sample of a row, which is counted from 1."""
        own = row.get(self.id) if self.id else None
        id = str(number) if own is None else f"{own}#{number}" if again else str(own)
        return self._as(row, id, f"{self.path} row {number}")

    def length(self, row: dict[str, Any]) -> int:
        """Characters of a row of which there are only the columns of texts."""
        try:
            if name := self.names["messages"]:
                return measure(row[name])
            if name := self.names["conversations"]:
                return sum(len(turn["value"]) for turn in row[name])
            return sum(len(str(one)) for one in row.values())
        except (TypeError, KeyError, AttributeError):
            return 0

    def _find(self, name: str, there: Sequence[str], *usual: str) -> str | None:
        if name in self.columns:
            return self.columns[name]
        return next((one for one in usual or (name,) if one in there), None)

    def _kind(self) -> Callable[[dict[str, Any], str, str], Sample]:
        names = self.names
        if names["messages"]:
            return self._messages
        if names["conversations"]:
            return self._llava
        if names["question"] and names["answer"]:
            return self._question
        if names["caption"] and (names["image"] or names["images"]):
            return self._caption
        raise DataError(
            f"The data set {self.path!r} has no columns that are known among those of its rows: it takes messages, "
            "conversations, question and answer, or image and caption; name them by columns."
        )

    def _images(self, row: dict[str, Any], where: str) -> list[str | bytes]:
        name = self.names["images"] or self.names["image"]
        return [image_at(one, self.root, where) for one in as_list(row.get(name) if name else None)]

    def _messages(self, row: dict[str, Any], id: str, where: str) -> Sample:
        name = self.names["messages"] or "messages"
        columns = {"messages": name, "images": self.names["images"] or self.names["image"] or "images"}
        return from_messages(row, id=id, where=where, root=self.root, columns=columns)

    def _llava(self, row: dict[str, Any], id: str, where: str) -> Sample:
        turns = row[self.names["conversations"] or ""]
        return from_turns(turns, id=id, images=self._images(row, where), where=where)

    def _question(self, row: dict[str, Any], id: str, where: str) -> Sample:
        question, answer = (row[self.names[name] or ""] for name in ("question", "answer"))
        if not isinstance(question, str) or not isinstance(answer, str):
            raise DataError(f"{where} has a question or an answer that is no text: choose the columns by columns.")
        turns = (Message("user", question), Message("assistant", answer))
        return sample(id, self._images(row, where), conversations=[turns], where=where)

    def _caption(self, row: dict[str, Any], id: str, where: str) -> Sample:
        caption = row[self.names["caption"] or ""]
        if not isinstance(caption, str):
            raise DataError(f"{where} has a caption that is no text: choose its column by columns.")
        prompt = self.prompts[hash_of(id) % len(self.prompts)] if self.prompts else ""
        return captioned(id, self._images(row, where), caption.strip(), prompt=prompt, where=where)


def stream_dataset(
    path: str,
    *,
    split: str,
    images: Path | None = None,
    prompts: Sequence[str] = (),
    columns: dict[str, str] | None = None,
    skip: int = 0,
) -> Iterator[Sample | DataError]:
    """The samples of a streamed data set, in its order; instead of one that cannot be used, why.

    Args:
        path: as in `DatasetSource`.
        split: of the data set.
        images: where relative paths of images begin.
        prompts: see `Captioned`.
        columns: names of columns where they are not the usual.
        skip: so many rows at the beginning.

    Raises:
        DataError: as in `DatasetSource`, or the stream breaks off.
    """
    data = _undecoded(_load(path, split, streaming=True))
    reader: RowReader | None = None
    rows = iter(data.skip(skip) if skip else data)
    number = skip
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"{path} broke off after row {number} ({_reason(error)}): run it again.") from error
        number += 1
        reader = reader or RowReader(path, list(row), root=str(images or "."), prompts=prompts, columns=columns)
        try:
            # A stream is not read twice to find out which ids come again: all are numbered.
            sample_ = reader.read(row, number, again=True)
        except DataError as error:
            yield error
        else:
            yield sample_


class Listed(Rows):
    """Samples that were read already; the first of a stream.

    Args:
        name: see `Rows`.
        samples: instead of one that cannot be used, why.
    """

    def __init__(self, name: str, samples: Sequence[Sample | DataError]) -> None:
        super().__init__(name)
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def length(self, index: int) -> int:
        """See `Rows`."""
        found = self.samples[index]
        return characters(found.conversations) if isinstance(found, Sample) else 0

    def read(self, index: int) -> Sample:
        """See `Rows`."""
        found = self.samples[index]
        if isinstance(found, DataError):
            raise found
        return found


def _load(path: str, split: str, *, streaming: bool) -> Any:
    """A data set of one split, from the disk or the hub."""
    datasets = needed("datasets", "Data sets")
    place = Path(path).expanduser()
    try:
        if not streaming and ((place / "state.json").is_file() or (place / "dataset_dict.json").is_file()):
            found = datasets.load_from_disk(str(place))
            if not hasattr(found, "keys"):
                return found
            if split not in found:
                raise DataError(f"The data set {path!r} has the splits {_listed(found)} and no {split!r}: choose one.")
            return found[split]
        if place.is_file() and place.suffix.lower() in _FILES:
            builder = _FILES[place.suffix.lower()]
            # Its one file is all there is, whatever the split is called.
            return datasets.load_dataset(builder, data_files=str(place), split="train", streaming=streaming)
        return datasets.load_dataset(str(place) if place.exists() else path, split=split, streaming=streaming)
    except DataError:
        raise
    except Exception as error:  # the library raises whatever its readers and the network raise
        raise DataError(
            f"The data set {path!r}, split {split!r}, cannot be loaded ({_reason(error)}): give a folder of "
            "save_to_disk, a local folder or file, or a hub id."
        ) from error


def _undecoded(data: Any) -> Any:
    """Images as `{"bytes", "path"}`."""
    datasets = needed("datasets", "Data sets")
    plain = datasets.Image(decode=False)
    for name, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, plain)
        elif isinstance(inner := getattr(feature, "feature", None), datasets.Image):
            del inner
            data = data.cast_column(name, datasets.List(plain))
    return data


def _listed(names: Any) -> str:
    return ", ".join(str(one) for one in names)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
