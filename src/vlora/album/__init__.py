"""Albums: many images, kept as visual parameters, and asked without a pixel.

    paths ─ find ─► decode ─► perceive ─► commit ─► ALBUM ─ select ─► parameters ─► expand ─► answers
            sources  decode    encoding    writer     │        entries     album
                     (workers)                        ├─ album.sqlite      index
                                                      └─ shards/           shards

    import vlora
    eyes = vlora.load("nano")
    vlora.album.encode(eyes, "photos", "album")

    album = vlora.album.open("album")
    eyes.ask(album["dog.jpg"], "What colour is it?")
    for entry, answer in album.ask(eyes, "Is there a dog?", select="2026/*.jpg"):
        ...

A picture is stored once, under the hash of its pixels, whatever files show it. What a crash can cost, and why no more
than one batch, stands in `index.py`; what else can be done with an album, in `upkeep.py` and
`exchange.py`.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .album import Album, Answer, Info, Problem
    from .encoding import Progress, Report, encode
    from .entries import Entry
    from .exchange import export, merge
    from .identity import Eyes
    from .upkeep import prune, verify

# Found when they are asked for: `vlora --help` looks in here, and must not import torch.
_HOME = {
    "Album": "album",
    "Answer": "album",
    "Entry": "entries",
    "Info": "album",
    "Problem": "album",
    "Progress": "encoding",
    "Report": "encoding",
    "encode": "encoding",
    "export": "exchange",
    "merge": "exchange",
    "prune": "upkeep",
    "verify": "upkeep",
}
__all__ = [
    "Album",
    "Answer",
    "Entry",
    "Info",
    "Problem",
    "Progress",
    "Report",
    "encode",
    "export",
    "is_album",
    "merge",
    "open",
    "prune",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vlora.album' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def open(folder: str | Path, *, eyes: Eyes | None = None) -> Album:
    """Open an album.

    Args:
        folder: of the album.
        eyes: a model that is going to be asked; an album of another one is refused.

    Raises:
        AlbumError: no album, a damaged one, or one of another model.
    """
    from .album import Album

    album = Album(folder)
    if eyes is not None:
        album.check(eyes)
    return album


def is_album(folder: str | Path) -> bool:
    """Whether a path is the folder of an album."""
    from .index import INDEX

    return os.path.isfile(os.path.join(folder, INDEX))  # False, too, for what cannot be a path
