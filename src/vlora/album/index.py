"""The index of an album: one SQLite file that says which images there are and where their parameters lie.

    files     path, file hash, bytes, time ─► image        one row per file, or member of a tar
    images    image hash ─► shard, row, checksum           one row per different picture
    shards    file name, rows
    problems  path, reason                                 what could not be read
    meta      format, model, shape, precision

What a crash may leave behind, and why it costs one batch at most. Everything is written inside one transaction, in
this order:

    BEGIN IMMEDIATE ─► shard under a temporary name ─► fsync ─► rename ─► fsync of the folder ─► rows ─► COMMIT

1. The rows come last: whatever the index names has been on the disk, whole, before it was named.
2. A crash before COMMIT leaves the old index and a shard that nobody names. It can be told from one that is being
   written, because shards are written by the holder of SQLite's write lock alone: whoever holds that lock and sees a
   shard without a row may remove it (`Album.tidy`).
3. A shard never changes after its renaming. Compaction writes a new shard, moves the rows in one transaction, and
   removes the old files after COMMIT. That is why `synchronous` is EXTRA: a commit that a power cut could take back
   would name files which are gone by then.
4. Two writers take turns at that lock, and each looks again, inside it, which images are there already. So the same
   picture is stored once whoever comes first.

The journal is SQLite's rollback journal, not its write-ahead log: an album on a read-only disk can be opened, and an
album at rest is the index and the shards, without files beside them that must not be forgotten in a copy. The locks
are those of the file system; a network drive without working locks is no place for two writers.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import AlbumError

INDEX, SHARDS = "album.sqlite", "shards"
FORMAT_VERSION = 1
APPLICATION = 0x564C6F52  # "VLoR", in the header of the file
WAIT_SECONDS = 120.0  # for another writer, which holds the lock for one batch
CHUNK = 400  # names in one question; old builds of SQLite take 999

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE shards (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL);
CREATE TABLE images (hash TEXT PRIMARY KEY, shard INTEGER NOT NULL REFERENCES shards (id),
    row INTEGER NOT NULL, sum TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE files (path TEXT PRIMARY KEY, name TEXT NOT NULL, archive TEXT,
    image TEXT NOT NULL REFERENCES images (hash), bytes INTEGER NOT NULL, time INTEGER NOT NULL, file TEXT NOT NULL,
    added REAL NOT NULL, seal TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE problems (path TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX images_by_shard ON images (shard);
CREATE INDEX files_by_name ON files (name);
CREATE INDEX files_by_image ON files (image);
CREATE INDEX files_by_file ON files (file);
"""


class Index:
    """The SQLite file of an album, opened when it is first asked.

    Args:
        folder: of the album.
        writable: whether it will be written to.
    """

    def __init__(self, folder: Path, *, writable: bool = False) -> None:
        self.folder, self.writable = folder, writable
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()

    def rows(self, query: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a question.

        All at once: a cursor that stays open would hold a lock, and no writer could commit until it is done.
        """
        with self._lock, one_sentence(self.folder):
            return self._open().execute(query, arguments).fetchall()

    def value(self, query: str, arguments: Sequence[Any] = ()) -> Any:
        """The first column of the first row, or None."""
        found = self.rows(query, arguments)
        return found[0][0] if found else None

    def among(self, query: str, values: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        """All rows of a question with an `IN (...)`, written `IN (?*)`, for any number of values."""
        every = list(values)
        for start in range(0, len(every), CHUNK):
            part = every[start : start + CHUNK]
            yield from self.rows(query.replace("?*", ", ".join("?" * len(part))), part)

    def many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Write many rows; only inside a transaction."""
        with self._lock, one_sentence(self.folder):
            self._open().executemany(statement, rows)

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Hold the write lock; all that is written stays, or, if anything is raised, nothing."""
        with self._lock:
            with one_sentence(self.folder):
                connection = self._open()
                connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                with one_sentence(self.folder):
                    connection.execute("COMMIT")
            except BaseException:
                # A full disk may have rolled back already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def create(self, meta: dict[str, str]) -> None:
        """Make the tables, unless they are there; of two that come at once the second finds those of the first."""
        with self.transaction():
            # Nothing is made anew in an index that lacks something: `meta` tells that it is damaged.
            if not self.rows("SELECT 1 FROM sqlite_master"):
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self.rows(statement)
                self.many("INSERT INTO meta VALUES (?, ?)", meta.items())
                self.rows(f"PRAGMA application_id = {APPLICATION}")
                self.rows(f"PRAGMA user_version = {FORMAT_VERSION}")

    def meta(self) -> dict[str, str]:
        """What was said of the album when it was made.

        Raises:
            AlbumError: no album, a damaged one, or one of a later version.
        """
        advice = "make one with `vlora encode IMAGES -o ALBUM`"
        if not os.path.isfile(self.folder / INDEX):
            found = "does not exist" if not os.path.exists(self.folder) else f"holds no {INDEX}"
            raise AlbumError(f"There is no album {str(self.folder)!r}, it {found}: {advice}.")
        application, version = self.value("PRAGMA application_id"), self.value("PRAGMA user_version")
        if application == 0 and not self.rows("SELECT 1 FROM sqlite_master"):
            raise AlbumError(f"The album {str(self.folder)!r} is empty, its making was cut off: {advice} again.")
        if application != APPLICATION:
            raise AlbumError(f"The {INDEX} in {str(self.folder)!r} is not the index of an album: {advice}.")
        if version > FORMAT_VERSION:
            raise AlbumError(
                f"The album {str(self.folder)!r} has format {version}, and this version reads up to {FORMAT_VERSION}: "
                "update vlora."
            )
        return dict(self.rows("SELECT key, value FROM meta"))

    def release(self) -> None:
        """Close the file until it is asked again: a connection must not be carried into a forked process."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            # A reader too opens for writing where it may, so that it can undo what a killed writer has left half done.
            uri = f"{(self.folder / INDEX).absolute().as_uri()}?mode={'rwc' if self.writable else 'rw'}"
            self._connection = sqlite3.connect(
                uri, uri=True, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            settings = ("foreign_keys = ON", "synchronous = EXTRA") if self.writable else ("query_only = ON",)
            for setting in settings:
                self._connection.execute(f"PRAGMA {setting}")
        return self._connection


@contextmanager
def one_sentence(folder: Path) -> Generator[None]:
    """Turn what SQLite and the file system raise about an album into one sentence."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "") or ""
        raise AlbumError(f"The album {str(folder)!r} {_sentence(code, error)}.") from error
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise AlbumError(
            f"The album {str(folder)!r} cannot be read or written ({reason}): nothing of it is lost; make room or "
            "give a folder of yours, and run this again."
        ) from error


def _sentence(code: str, error: sqlite3.Error) -> str:
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"has been written to by another program for more than {WAIT_SECONDS:.0f} seconds: try again later"
    if code.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return (
            f"cannot be written ({error}): nothing that was finished is lost; make room on the disk and run this again"
        )
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return "cannot be opened for this, it is read-only or not yours: copy it to a folder of yours"
    if code.startswith(("SQLITE_CONSTRAINT", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_FORMAT")):
        return f"has a damaged index ({error}): restore {INDEX} from a copy, or make the album again"
    return f"cannot be used ({error}): check its folder and run this again"
