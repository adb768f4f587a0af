"""Small packages made here, a table of them, and stand-ins for npm and apt-get that take them from a folder."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tests.data.made import png
from vlora.data.sets.nano.packages import Package, Part, Tool

COPY = """#!{python}
import os, pathlib, shutil, sys
here = pathlib.Path({registry!r})
wanted = next(one for one in sys.argv[2:] if not one.startswith("-")).replace("@", "-").replace("=", "_")
with open({calls!r}, "a") as calls:
    calls.write(wanted + "\\n")
for file in here.iterdir():
    if file.name.replace("%3a", ":").startswith(wanted):
        shutil.copy(file, ".")
        break
else:
    sys.exit("E: nothing is called " + wanted)
"""
"""A tool that brings what lies in a folder, and notes what it was asked for."""


@dataclass(frozen=True)
class Made:
    """Packages in a folder, and the table of them."""

    folder: Path
    packages: tuple[Package, ...]


def tar(members: Mapping[str, bytes | str], *, mode: str) -> bytes:
    """A tar; a text is where a symbolic link leads."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def deb(members: Mapping[str, bytes | str], *, data: str = "data.tar.xz") -> bytes:
    """A Debian package: an `ar` archive whose middle member has an odd size, as happens."""
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", data: tar(members, mode="w:xz")}
    packed = b"!<arch>\n"
    for name, content in parts.items():
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        packed += content + b"\n" * (len(content) % 2)
    return packed


def wheel(members: Mapping[str, bytes], *, name: str = "tiny_digits", version: str = "1.0") -> bytes:
    """A wheel that pip takes for one."""
    about = f"{name}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    tags = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        files = {**members, f"{about}/METADATA": head, f"{about}/WHEEL": tags, f"{about}/RECORD": b""}
        for path, content in files.items():
            archive.writestr(path, content)
    return stream.getvalue()


def package(tool: Tool, file: str, content: bytes, *parts: Part, version: str = "1.0") -> Package:
    """A line of the table for a file made here."""
    name = {"npm": file.rpartition("-")[0], "apt": file.partition("_")[0], "pip": "tiny-digits"}[tool]
    return Package(
        tool=tool,
        name=name,
        version=version,
        file=file,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        licence="CC0-1.0",
        about="Made for a test.",
        use="a test",
        unpacked=1000,
        parts=parts,
    )


def make(folder: Path) -> Made:
    """One package of each tool: two emoji, a wide background with an epoch in its version, and digits."""
    folder.mkdir(parents=True)
    emoji = tar({"package/64/a.png": png(1), "package/64/b.png": png(2), "package/LICENSE": b"x"}, mode="w:gz")
    backgrounds = deb({"./usr/share/wide.png": png(3), "./usr/share/again.png": "wide.png"})
    digits = wheel({"tiny/digits.csv.gz": b"0,1,2"})
    files = {
        "tiny-emoji-1.0.tgz": emoji,
        "tiny-backgrounds_1%3a1.0-1_all.deb": backgrounds,
        "tiny_digits-1.0-py3-none-any.whl": digits,
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    names = list(files)
    return Made(
        folder,
        (
            package("npm", names[0], emoji, Part(r"package/64/(.+\.png)", r"emoji/\1")),
            package(
                "apt",
                names[1],
                backgrounds,
                Part(r"usr/share/(.+)\.png", r"backgrounds/\1.jpg", shorter=8),
                version="1:1.0-1",
            ),
            package("pip", names[2], digits, Part(r"tiny/(digits.*)", r"digits/\1")),
        ),
    )


def alone(made: Made, content: bytes, *, like: int, part: Part | None = None) -> Made:
    """One package of a table with another content, that the table knows."""
    one = made.packages[like]
    (made.folder / one.file).write_bytes(content)
    other = replace(one, size=len(content), sha256=hashlib.sha256(content).hexdigest(), parts=(part or one.parts[0],))
    return Made(made.folder, (other,))


def install(folder: Path, registry: Path, *, script: str = COPY) -> Path:
    """Put stand-ins for npm and apt-get into a folder; returns the file with what they were asked for."""
    folder.mkdir(exist_ok=True)
    calls = folder / "calls.txt"
    calls.touch()
    for name in ("npm", "apt-get"):
        tool = folder / name
        tool.write_text(script.format(python=sys.executable, registry=str(registry), calls=str(calls)))
        tool.chmod(0o755)
    return calls
