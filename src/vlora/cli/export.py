"""`vlora export`: an image as a LoRA adapter of the plain language model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ._eyes import AsJson, Device, Model, load_eyes, milliseconds
from ._output import command, print_json, say
from .ask import read_images

if TYPE_CHECKING:
    from ..export.adapter import Adapter


@command
def export(
    image: Annotated[str, typer.Argument(help="A PNG, JPEG, WEBP, GIF, BMP or TIFF file; - reads it from stdin.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="A folder, or for gguf a file; not there yet.")
    ],
    to: Annotated[
        Literal["peft", "sglang", "gguf"],
        typer.Option(help="peft: a folder for peft and vLLM; sglang: one for SGLang; gguf: a file for llama.cpp."),
    ] = "peft",
    more: Annotated[
        list[str] | None,
        typer.Option("--and", metavar="IMAGE", help="One more image in the same adapter; as often as you like."),
    ] = None,
    model: Model = "nano",
    device: Device = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Precision of what is written.")
    ] = "float32",
    base_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the adapter calls its language model: a hub id, or a folder."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an adapter that stands there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an image, or several composed, as a LoRA adapter: sight for engines that know only text."""
    # All that can be wrong is looked at before the model is loaded, which takes seconds.
    images = [image, *(more or [])]
    pictures = read_images(images)
    _check_place(output, to, force)
    eyes, load_ms = load_eyes(model, device)
    started = time.perf_counter()
    adapter = eyes.adapter(pictures, base_model=base_model)
    encode_ms, started = milliseconds(started), time.perf_counter()
    files = _write(adapter, output, to, dtype, force)
    facts = {
        "output": str(output),
        "to": to,
        "images": [{"image": name, "sha256": one.sha256} for name, one in zip(images, adapter.images, strict=True)],
        "model": model,
        "base_model": adapter.base.name,
        "base_fingerprint": adapter.base.fingerprint,
        "targets": list(adapter.targets),
        "layers": list(adapter.layers),
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "dtype": dtype,
        "bytes": files,
        "timings_ms": {"load": load_ms, "encode": encode_ms, "write": milliseconds(started)},
    }
    if as_json:
        print_json(facts)
    else:
        _show(facts)


def _check_place(output: Path, to: str, force: bool) -> None:
    from ..export.peft import FILES
    from ..export.place import check_anchor, free_file, free_folder

    place = free_folder(output, ours=FILES, force=force) if to != "gguf" else free_file(output, force=force)
    check_anchor(place)


def _write(adapter: Adapter, output: Path, to: str, dtype: str, force: bool) -> dict[str, int]:
    """Bytes of each file."""
    from ..export import gguf, peft
    from ..export.adapter import DTYPES, completed

    if to == "gguf":
        return {output.name: gguf.save_file(adapter, output, dtype=DTYPES[dtype], force=force)}
    adapter = completed(adapter) if to == "sglang" else adapter
    return peft.save_folder(adapter, output, dtype=DTYPES[dtype], force=force)


def _show(facts: dict[str, Any]) -> None:
    from rich.filesize import decimal

    size = decimal(sum(facts["bytes"].values()))
    count = len(facts["images"])
    say(f"exported    {', '.join(one['image'] for one in facts['images'])}")
    say(f"to          {facts['output']}  ({size}, {facts['dtype']})")
    say(f"targets     {' '.join(facts['targets'])} in layers {', '.join(map(str, facts['layers']))}")
    say(f"rank        {facts['rank']}{f', of {count} images composed' if count > 1 else ''}; alpha {facts['alpha']:g}")
    say(f"base model  {facts['base_model'] or 'not named'}, fingerprint {facts['base_fingerprint']}")
