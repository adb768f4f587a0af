"""An album, opened: a mapping from names of images to their visual parameters.

    album = vlora.album.open("album")
    eyes.ask(album["dog.jpg"], "What colour is it?")

Opening reads a few rows of the index; a shard is mapped when a picture in it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ..errors import AlbumError, InputError
from ..model import VisualParameters
from .entries import Entry, every, named, the_one
from .identity import Eyes, Identity
from .index import INDEX, SHARDS, Index, one_sentence
from .shards import Packed, Precision, Shards, check_precision, checksums, pack, unpack


class Answer(NamedTuple):
    """What was answered about a file."""

    entry: Entry
    text: str


class Problem(NamedTuple):
    """A file that could not be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Info:
    """An album in numbers.

    Args:
        album: its folder.
        model: the name of the model that it was made with.
        identity: fingerprints of that model.
        dtype: precision of the stored parameters.
        shape: targets, layers and dim of one image.
        files: in the album.
        images: different pictures.
        unused: pictures that no file shows any more; `prune` takes them out.
        unreadable: files that could not be read.
        shards: files of parameters.
        bytes_per_image: of its parameters, as they are stored.
        bytes: of shards and index.
        created: when.
    """

    album: str
    model: str
    identity: Identity
    dtype: Precision
    shape: tuple[int, int, int]
    files: int
    images: int
    unused: int
    unreadable: int
    shards: int
    bytes_per_image: int
    bytes: int
    created: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Album(Mapping[str, VisualParameters]):
    """Many images, kept as visual parameters; see `vlora.album.open`.

    Its keys are paths. It can be asked by any end of a path that is unambiguous, or by `hash:` and the first digits
    of a picture's hash.

    Args:
        folder: of the album.
        writable: whether it will be added to.

    Raises:
        AlbumError: no album, or a damaged one.
    """

    def __init__(self, folder: str | Path, *, writable: bool = False) -> None:
        self.folder = Path(folder)
        self.index = Index(self.folder, writable=writable)
        self.shards = Shards(self.folder / SHARDS)
        meta = self.index.meta()
        try:
            self.identity = Identity.from_json(meta["identity"])
            self.model = meta["model"]
            targets, layers, dim = map(int, meta["shape"].split())
            self.shape = (targets, layers, dim)
            self.dtype: Precision = meta["dtype"]  # type: ignore[assignment]
            check_precision(self.dtype)
            self.created = meta["created"]
        except (KeyError, ValueError) as error:
            raise AlbumError(
                f"The album {str(folder)!r} has a damaged index (what it says of its model cannot be read): restore "
                f"{INDEX} from a copy, or make the album again."
            ) from error

    # ---- a mapping ----------------------------------------------------------------------------------

    def __getitem__(self, name: str | Path) -> VisualParameters:
        return self.parameters([self.entry(name)])

    def __len__(self) -> int:
        return self.index.value("SELECT COUNT(*) FROM files")

    def __iter__(self) -> Iterator[str]:
        return (entry.path for entry in every(self.index))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str | Path) and bool(named(self.index, name))

    def __eq__(self, other: object) -> bool:
        return self is other  # a mapping would read all of both

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"Album({str(self.folder)!r}, {len(self)} files, {self.dtype}, model {self.model!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its files. What is asked later opens them again."""
        self.index.release()
        self.shards.forget()

    # ---- finding ------------------------------------------------------------------------------------

    def entry(self, name: str | Path) -> Entry:
        """What the index says of one file.

        Raises:
            NotInAlbum: no such name, or an ambiguous one.
        """
        return the_one(self.index, name)

    def select(self, *patterns: str) -> Iterator[Entry]:
        """Files that fit any of some patterns, in the order of their paths; without a pattern all.

        Args:
            *patterns: globs on the end of the path (`dog*.jpg`, `photos/*`), or `hash:` and the first digits of a
                picture's hash.
        """
        return every(self.index, patterns or None)

    def problems(self) -> list[Problem]:
        """Files that could not be read."""
        return [Problem(*row) for row in self.index.rows("SELECT path, reason FROM problems ORDER BY path")]

    def info(self) -> Info:
        """The album in numbers."""
        value = self.index.value
        targets, layers, dim = self.shape
        per_image = pack(torch.zeros(1, targets, layers, dim), self.dtype)
        return Info(
            album=str(self.folder),
            model=self.model,
            identity=self.identity,
            dtype=self.dtype,
            shape=self.shape,
            files=len(self),
            images=value("SELECT COUNT(*) FROM images"),
            unused=value("SELECT COUNT(*) FROM images WHERE hash NOT IN (SELECT image FROM files)"),
            unreadable=value("SELECT COUNT(*) FROM problems"),
            shards=value("SELECT COUNT(*) FROM shards"),
            bytes_per_image=sum(tensor.nbytes for tensor in per_image.values()),
            bytes=value("SELECT TOTAL(bytes) FROM shards").__int__() + (self.folder / INDEX).stat().st_size,
            created=self.created,
        )

    def leftovers(self) -> list[str]:
        """Files in the folder of shards that the index does not name."""
        known = {row[0] for row in self.index.rows("SELECT name FROM shards")}
        with one_sentence(self.folder):
            return sorted(path.name for path in self.shards.folder.iterdir() if path.name not in known)

    # ---- using --------------------------------------------------------------------------------------

    def check(self, eyes: Eyes) -> None:
        """Refuse a model that this album was not made with.

        Raises:
            AlbumError: it is another one.
        """
        self.identity.check(Identity.of(eyes), album=self.folder, model=eyes.name)

    def parameters(self, entries: Iterable[Entry | str | Path]) -> VisualParameters:
        """Visual parameters of several files in one batch, in their order, as float32.

        Args:
            entries: what `select` or `entry` gave, or names.

        Raises:
            NotInAlbum: a name that is not there, or is ambiguous.
            AlbumError: damaged parameters.
        """
        hashes = [(one if isinstance(one, Entry) else self.entry(one)).image for one in entries]
        if not hashes:
            raise InputError("There are no images to take out of the album: name at least one.")
        values = self.images(list(dict.fromkeys(hashes)))
        return VisualParameters(torch.stack([values[one] for one in hashes]))

    def images(self, hashes: Sequence[str]) -> dict[str, Tensor]:
        """Pictures by their hash: `[targets, layers, dim]`, float32.

        Raises:
            AlbumError: damaged parameters, or an index that names what is not there.
        """
        names, packed = self.packed(hashes)
        return dict(zip(names, unpack(packed), strict=True))

    def packed(self, hashes: Sequence[str]) -> tuple[list[str], Packed]:
        """Pictures as they are stored, in an order of their own; each is checked against its checksum.

        Raises:
            AlbumError: as in `images`.
        """
        for attempt in range(3):  # another process may compact the shards between the two readings
            try:
                return self._packed(hashes)
            except FileNotFoundError as error:
                if attempt == 2:
                    name = Path(str(error.filename or error)).name
                    raise self.damaged(f"the shard {name} is missing") from error
        raise AssertionError("unreachable")

    def _packed(self, hashes: Sequence[str]) -> tuple[list[str], Packed]:
        query = "SELECT i.hash, s.name, i.row, i.sum FROM images i JOIN shards s ON s.id = i.shard WHERE i.hash IN (?*)"
        places = sorted(self.index.among(query, hashes), key=lambda place: place[1:3])
        if len(places) != len(hashes):
            raise self.damaged("it names pictures that are not there")
        names, parts = list[str](), list[Packed]()
        for shard in dict.fromkeys(place[1] for place in places):
            here = [place for place in places if place[1] == shard]
            listed, packed = self.shards.rows(shard, [place[2] for place in here])
            for place, listing, found in zip(here, listed, checksums(packed), strict=True):
                if (listing, found) != (place[0], place[3]):
                    raise self.damaged(f"the parameters of the picture {place[0][:12]} do not fit their checksum")
            names += listed
            parts.append(packed)
        return names, {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def damaged(self, what: str) -> AlbumError:
        """The error of a damage that concerns some images only."""
        return AlbumError(
            f"The album {str(self.folder)!r} is damaged, {what}: `vlora album verify` shows how much, `vlora album "
            "prune --damaged` takes it out, and `vlora encode` encodes it again."
        )

    def ask(
        self,
        eyes: Any,
        question: str,
        *,
        select: str | Sequence[str] | None = None,
        batch_size: int = 32,
        max_new_tokens: int = 64,
        **options: Any,
    ) -> Iterator[Answer]:
        """Ask one question about many images, without looking at a pixel.

        Args:
            eyes: the model, as `vlora.load` gives it.
            question: what to ask.
            select: patterns, see `select()`; None for all files.
            batch_size: pictures at a time.
            max_new_tokens: length of the longest answer.
            **options: for `generate`.

        Yields:
            An answer for each file, in the order of their paths; a picture that several files of a batch show is
            asked about once.

        Raises:
            AlbumError: an album of another model, or a damaged one.
            InputError: an empty question or batch.
        """
        if batch_size < 1:
            raise InputError(f"A batch of {batch_size} images is not possible: give at least 1.")
        self.check(eyes)
        patterns = [select] if isinstance(select, str) else select
        entries = every(self.index, patterns)
        while batch := list(islice(entries, batch_size)):
            pictures = list(dict.fromkeys(entry.image for entry in batch))
            values = self.images(pictures)
            seen = [VisualParameters(values[picture][None]) for picture in pictures]
            texts = eyes.ask(seen, [question] * len(seen), max_new_tokens=max_new_tokens, **options)
            answers = dict(zip(pictures, texts, strict=True))
            yield from (Answer(entry, answers[entry.image]) for entry in batch)
