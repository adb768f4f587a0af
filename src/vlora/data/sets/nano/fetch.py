"""The nano set, fetched once: whole, or not at all.

    packages ─ download ─► nano-data.partial/packages ─ unpack ─► nano-data.partial/tree ─ rename ─► nano-data

    from vlora.data.sets.nano.fetch import folder
    folder() / "stamps"

A package is kept from the moment its hash was right, so an interrupted call goes on where it was. SOURCES.json is
written last, then the folder gets its name: under that name it is whole. One process fetches, others wait for it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ....cache import CACHE_VARIABLE, cache_folder, hold
from ....errors import DataError, MissingDependency, VLoRAError
from .download import WORK, check, download, given, require_tools
from .packages import PACKAGES, Package
from .unpack import require_resvg, unpack

NAME = "nano-data"
SOURCES = "SOURCES.json"

Tell: TypeAlias = Callable[[str, int, int], None]
"""Told what is going on, bytes done, and bytes in all."""

_FORMAT = 5
"""Raise it when other files are taken, or the same ones are changed otherwise."""
_RUN = "run `vlora data fetch nano`"
_MB = 1_000_000


@dataclass(frozen=True)
class Fetched:
    """What is there.

    Args:
        folder: of the set.
        packages: of each, as in SOURCES.json: tool, name, version, file, sha256, licence, about, use, files.
        files: in all, without SOURCES.json.
        bytes: of these files.
        kept: whether it was there before.
    """

    folder: Path
    packages: tuple[dict[str, Any], ...]
    files: int
    bytes: int
    kept: bool


def folder() -> Path:
    """The folder of the set; a file is read, and nothing is fetched.

    Raises:
        MissingDependency: it has not been fetched.
        DataError: it cannot be read, or another version of VLoRA fetched it.
    """
    place = cache_folder() / NAME
    _read(place, PACKAGES)
    return place


def fetch(
    packages: Sequence[Package] | None = None,
    into: Path | None = None,
    *,
    source: Path | None = None,
    tell: Tell | None = None,
    notify: Callable[[str], None] | None = None,
) -> Fetched:
    """Bring the set into the cache, unless it is there.

    Args:
        packages: that it is made of; by default `PACKAGES`.
        into: the cache; by default that of the user.
        source: a folder that holds the files of all packages; nothing is downloaded.
        tell: told about progress.
        notify: told, in one sentence, what is about to be done.

    Raises:
        MissingDependency: a tool is not installed.
        DataError: a file is not what it should be.
        VLoRAError: there is no network, no such version, or no space.
    """
    packages = PACKAGES if packages is None else packages
    cache = cache_folder() if into is None else into
    place = cache / NAME
    tell, notify = tell or _nothing, notify or _nothing
    if found := _whole(place, packages):
        return found
    with _locked(place, notify):
        if found := _whole(place, packages):  # another process has fetched it meanwhile
            return found
        files = None if source is None else given(packages, source)
        partial = place.with_name(f"{NAME}.partial")
        try:
            with _disk_errors(cache):
                _fetch(packages, place, partial, files, tell, notify)
        finally:
            _tidy(partial)
    return _read(place, packages, kept=False)


def _fetch(
    packages: Sequence[Package],
    place: Path,
    partial: Path,
    files: dict[Package, Path] | None,
    tell: Tell,
    notify: Callable[[str], None],
) -> None:
    kept = partial / "packages"
    kept.mkdir(parents=True, exist_ok=True)
    _tidy(partial, all=False)
    absent = [] if files else [one for one in packages if not _is_whole(one, kept / one.file)]
    require_tools(absent)
    if any(".svg" in part.members for one in packages for part in one.parts):
        require_resvg()
    _announce(packages, absent, place, from_files=files is not None, notify=notify)

    total = sum(one.size for one in packages)
    wanted = packages if files else absent
    done = total - sum(one.size for one in wanted)
    for one in wanted:
        tell(f"fetching {one.name}", done, total)
        if files:
            check(one, files[one])
        else:
            download(one, kept, watch=_share(one, done, total, tell))
        done += one.size
    tell("fetched", total, total)

    tree = partial / "tree"
    tree.mkdir()
    counts: list[int] = []
    done = 0
    for one in packages:
        tell(f"unpacking {one.name}", done, total)
        counts.append(unpack(one, files[one] if files else kept / one.file, into=tree))
        done += one.size
    tell("unpacked", total, total)
    _seal(tree, packages, counts)
    _swap(tree, place, partial)
    shutil.rmtree(kept)


def _share(package: Package, done: int, total: int, tell: Tell) -> Callable[[int], None]:
    """Tell of a package's bytes as part of all; its tool may hold it twice, and the bar does not run ahead."""
    return lambda now: tell(f"fetching {package.name}", done + min(now, package.size), total)


def _announce(
    packages: Sequence[Package],
    absent: Sequence[Package],
    place: Path,
    *,
    from_files: bool,
    notify: Callable[[str], None],
) -> None:
    """Say what is ahead, and fail now if the disk is too small for it."""
    stays = sum(one.unpacked for one in packages)
    brought = sum(one.size for one in absent)
    # npm writes a package once to its cache and once to its place.
    twice = max((one.size for one in absent if one.tool == "npm"), default=0)
    needed = stays + brought + twice
    what = (
        f"{len(packages)} packages are read where they are"
        if from_files
        else f"{len(absent)} of {len(packages)} packages are fetched, {brought / _MB:.0f} MB"
    )
    notify(f"{what}; {place} needs {_megabytes(needed)} MB meanwhile and keeps {_megabytes(stays)} MB.")
    free = shutil.disk_usage(place.parent).free
    if free < needed:
        raise VLoRAError(_cannot_write(place.parent, f"{free // _MB} MB are free, {_megabytes(needed)} MB are needed"))


def _is_whole(package: Package, file: Path) -> bool:
    """Whether a package was kept by a call before; what is there and damaged goes."""
    if not file.is_file():
        return False
    try:
        check(package, file)
    except DataError:
        file.unlink()
        return False
    return True


# -- the folder --------------------------------------------------------------------------------------------


def _read(place: Path, packages: Sequence[Package], *, kept: bool = True) -> Fetched:
    """What SOURCES.json says, if it is about these packages."""
    try:
        content = json.loads((place / SOURCES).read_text(encoding="utf-8"))
        header, listed = content["format"], tuple(content["packages"])
        found = Fetched(place, listed, int(content["files"]), int(content["bytes"]), kept)
        same = header == _FORMAT and [(one["file"], one["sha256"]) for one in listed] == [
            (one.file, one.sha256) for one in packages
        ]
    except FileNotFoundError as error:
        raise MissingDependency(f"The nano set is not in {place.parent}: {_RUN}.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place / SOURCES} cannot be read ({error}): {_RUN}.") from error
    if not same:
        raise DataError(f"{place} was fetched by another version of VLoRA: {_RUN}, which replaces it.")
    return found


def _whole(place: Path, packages: Sequence[Package]) -> Fetched | None:
    """What is there, if no file was lost or cut since."""
    try:
        found = _read(place, packages)
    except (MissingDependency, DataError):
        return None
    return found if _measure(place) == (found.files, found.bytes) else None


def _measure(tree: Path) -> tuple[int, int]:
    """How many files, but SOURCES.json, and of how many bytes."""
    sizes = [
        os.stat(os.path.join(above, name)).st_size
        for above, _, names in os.walk(tree)
        for name in names
        if name != SOURCES
    ]
    return len(sizes), sum(sizes)


def _seal(tree: Path, packages: Sequence[Package], counts: Sequence[int]) -> None:
    """Write what was fetched, last of all, and wait until everything is on the disk."""
    files, size = _measure(tree)
    listed = [_listed(one) | {"files": count} for one, count in zip(packages, counts, strict=True)]
    content = {"format": _FORMAT, "files": files, "bytes": size, "packages": listed}
    (tree / SOURCES).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if hasattr(os, "sync"):
        os.sync()  # one call: flushing ten thousand small files one by one takes minutes


def _listed(package: Package) -> dict[str, Any]:
    left_out = ("parts", "size", "unpacked")
    return {name: value for name, value in asdict(package).items() if name not in left_out}


def _swap(tree: Path, place: Path, partial: Path) -> None:
    """Give a finished folder its name; it can only be renamed onto nothing, so an old one steps aside."""
    if place.exists():
        os.replace(place, Path(tempfile.mkdtemp(prefix="old-", dir=partial)) / NAME)
    os.replace(tree, place)


def _tidy(partial: Path, *, all: bool = True) -> None:
    """Remove what is half done; whole packages stay, and the folder as long as it holds any."""
    for leftover in (partial / "tree", *partial.glob("old-*"), *partial.glob(f"packages/{WORK}*")):
        shutil.rmtree(leftover, ignore_errors=True)
    if all:
        for empty in (partial / "packages", partial):
            with suppress(OSError):  # not empty, or not there
                empty.rmdir()


# -- the surroundings --------------------------------------------------------------------------------------


def _locked(place: Path, notify: Callable[[str], None]) -> AbstractContextManager[object]:
    """Hold the lock; it ends with its process, however that ends."""
    with _disk_errors(place.parent):
        return hold(place, lambda: notify("Waiting for another process that is fetching the nano set ..."))


@contextmanager
def _disk_errors(cache: Path) -> Generator[None]:
    try:
        yield
    except VLoRAError:
        raise  # some are OSErrors, too
    except (OSError, NotImplementedError) as error:
        raise VLoRAError(_cannot_write(cache, getattr(error, "strerror", None) or str(error))) from error


def _cannot_write(cache: Path, why: str) -> str:
    return (
        f"The cache folder {cache} cannot take the nano set ({why}): set {CACHE_VARIABLE} to a folder that can be "
        "written and has the space."
    )


def _megabytes(count: int) -> int:
    return -(-count // _MB)


def _nothing(*_: object) -> None:
    """Tell nobody."""
