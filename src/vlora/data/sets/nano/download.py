"""One package of a registry, by the user's own tool, checked before it is called whole.

    pip download | npm pack | apt-get download ──► a folder of its own ──► size, sha256 ──► kept

The tools know the registries, mirrors, proxies and passwords of the user; nothing here does. What a tool says when it
fails is read for its kind, and becomes one sentence.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ....errors import DataError, InputError, MissingDependency, VLoRAError
from .packages import Package, Tool

WORK = "tool-"
"""How folders begin in which a tool works."""

_LOOK_EVERY = 0.2
_LOG = "log.txt"

_PROGRAMS: dict[Tool, str] = {"pip": "pip", "npm": "npm", "apt": "apt-get"}
_GETTING: dict[Tool, str] = {
    "pip": "`python -m ensurepip` installs it",
    "npm": "it comes with Node.js",
    "apt": "Debian has it",
}

# What the tools say, in the order in which it is looked for: pip calls a missing network a missing version, too.
_FULL = re.compile(r"ENOSPC|No space left|enough free space", re.IGNORECASE)
_OFFLINE = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ERR_SOCKET|NewConnectionError|ProxyError"
    r"|Retrying \(|ReadTimeout|Could not resolve|Could not connect|Temporary failure|timed out|unreachable"
)
_UNKNOWN = re.compile(
    r"E404|ETARGET|notarget|No matching distribution|Could not find a version"
    r"|Unable to locate package|No packages found|Version '.*' for '.*' was not found|404 +Not Found"
)
_LAST_WORDS = re.compile(r"^(?:E:|npm (?:error|ERR!)|ERROR:)\s*(.+)$", re.MULTILINE)
_ADDRESS = re.compile(r"\S*://\S+")


def download(package: Package, into: Path, *, watch: Callable[[int], None]) -> Path:
    """Bring a package into a folder, under its file's name.

    Args:
        package: which one.
        into: a folder that exists; the tool works in a folder within, which is gone in the end.
        watch: told now and then how many bytes are there.

    Returns:
        The file, checked.

    Raises:
        MissingDependency: the tool is not installed.
        VLoRAError: the tool failed, for want of a network, of the version, or of space.
        DataError: what it brought is another file.
    """
    command = _command(package)
    work = Path(tempfile.mkdtemp(prefix=WORK, dir=into))
    try:
        if _run(command, work, watch):
            raise VLoRAError(_failure(package, (work / _LOG).read_text("utf-8", "replace"), into))
        file = next((work / name for name in package.files if (work / name).is_file()), None)
        if file is None:
            raise DataError(f"{_said(package)} brought no {package.file}: {_elsewhere(package)}.")
        check(package, file)
        return file.replace(into / package.file)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check(package: Package, file: Path) -> None:
    """Compare a file with what is known of it.

    Raises:
        DataError: it is another file, or cannot be read.
    """
    try:
        size = file.stat().st_size
        found = _hash(file) if size == package.size else None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): make it readable, or fetch it again.") from error
    if found != package.sha256:
        has = f"{size} bytes" if found is None else f"sha256 {found}"
        known = f"{package.size} bytes" if found is None else package.sha256
        raise DataError(
            f"{file.name} has {has}, but that of {package.name} {package.version} has {known}: it is damaged or "
            "another file, and is not used; remove it where it came from, and fetch it again."
        )


def given(packages: Sequence[Package], source: Path) -> dict[Package, Path]:
    """Find the files of packages in a folder, by their names.

    Raises:
        InputError: there is no such folder, or files are missing in it.
    """
    if not source.is_dir():
        raise InputError(f"{source} is no folder: give the folder that holds the package files.")
    places = {one: next((source / name for name in one.files if (source / name).is_file()), None) for one in packages}
    if missing := [one.file for one, place in places.items() if place is None]:
        raise InputError(f"{source} has no {', '.join(missing)}: put what is missing there, or leave --from out.")
    return {one: place for one, place in places.items() if place is not None}


def require_tools(packages: Sequence[Package]) -> None:
    """Look for all tools before the first is used.

    Raises:
        MissingDependency: names those that are missing, and the packages they are for.
    """
    missing: list[Tool] = sorted({one.tool for one in packages if _program(one.tool) is None})
    if missing:
        names = " and ".join(f"{_PROGRAMS[tool]} ({_GETTING[tool]})" for tool in missing)
        files = ", ".join(one.file for one in packages if one.tool in missing)
        raise MissingDependency(
            f"The nano set needs {names}, not found here: install what is missing, or download {files} on another "
            "machine and give the folder of all package files with --from."
        )


# -- the tools ---------------------------------------------------------------------------------------------


def _program(tool: Tool) -> list[str] | None:
    if tool == "pip" and importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which(_PROGRAMS[tool])  # pip, too: an environment of uv has none of its own
    return [found] if found else None


def _command(package: Package) -> list[str]:
    """What is run; no tool may build or run anything of a package."""
    require_tools([package])
    program = _program(package.tool) or []
    if package.tool == "pip":
        options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
        return [
            *program,
            "download",
            *options,
            "--progress-bar",
            "off",
            "--dest",
            ".",
            f"{package.name}=={package.version}",
        ]
    if package.tool == "npm":
        # With a cache of its own the file grows where it is watched, and is not kept twice.
        options = ["--ignore-scripts", "--cache", "cache", "--no-update-notifier"]
        return [*program, "pack", f"{package.name}@{package.version}", *options]
    return [*program, "download", f"{package.name}={package.version}"]


def _run(command: Sequence[str], work: Path, watch: Callable[[int], None]) -> int:
    """Run a tool to its end; interrupted, it is ended with all that it started."""
    environment = os.environ | {"LC_ALL": "C", "TMPDIR": str(work)}
    posix = os.name == "posix"
    with (work / _LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=posix,
        )
        try:
            while True:
                try:
                    return process.wait(_LOOK_EVERY)
                except subprocess.TimeoutExpired:
                    watch(_bytes(work))
        finally:
            if process.poll() is None:
                if posix:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
                process.wait()


def _bytes(folder: Path) -> int:
    """The bytes of all files below a folder that is being written."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:  # moved or removed since it was listed
                continue
    return total


def _failure(package: Package, log: str, into: Path) -> str:
    """What went wrong, in one sentence."""
    what = f"{package.name} {package.version}"
    if _FULL.search(log):
        return f"The disk of {into} is full ({_said(package)}): make room there, or set VLORA_CACHE to another folder."
    if _OFFLINE.search(log):
        return f"{_said(package)} reaches no registry: check the network and its settings, or {_elsewhere(package)}."
    if _UNKNOWN.search(log):
        if package.tool == "apt":
            return (
                f"apt-get has no {what} here, and only this version is allowed (Debian 12 has it): run `apt-get "
                f"update` as root if its lists are old, or {_elsewhere(package)}."
            )
        return (
            f"The registry of {_PROGRAMS[package.tool]} has no {what}: use one that has it, or {_elsewhere(package)}."
        )
    words = _LAST_WORDS.findall(log) or log.strip().splitlines()[-1:] or ["no reason given"]
    # An address may hold a password.
    reason = _ADDRESS.sub("(address)", " ".join(words[0].split())).rstrip(".:")
    return f"{_said(package)} failed ({reason}): mend that, or {_elsewhere(package)}."


def _said(package: Package) -> str:
    joint = {"pip": "==", "npm": "@", "apt": "="}[package.tool]
    verb = {"pip": "pip download", "npm": "npm pack", "apt": "apt-get download"}[package.tool]
    return f"`{verb} {package.name}{joint}{package.version}`"


def _elsewhere(package: Package) -> str:
    return f"download {package.file} on another machine and give the folder of all package files with --from"


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
