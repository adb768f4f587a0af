"""What an image costs llama.cpp: loading its adapter, prefill and decode with and without it.

    .venv/bin/python benchmarks/llama.py [--pairs 30] [--threads 1] [--base q4_1] [--dtype float32]

The packaged SmolLM2-135M-Instruct (a 4-bit GGUF), or the same in half precision, reads a prompt bare and with the nano
model's adapter, in turns, pair after pair in one process, so that a machine whose speed drifts slows both alike; what
counts are the ratios, of minima, with the quartiles of the ratio over pairs. Prefill is the prompt's forward pass,
decode one further token with a cache, the mean of eight. Of an image's way into llama.cpp are measured: `write`, a file
by the writer of the package gguf; `put`, the same image into a prepared template; `wear`, llama.cpp's loading from
memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import vlora
from vlora.data.prompts import render
from vlora.export.adapter import DTYPES
from vlora.export.gguf import Template, save_file
from vlora.export.llama_cpp import LlamaCpp
from vlora.nano.parts import packaged_language_model

IMAGES = Path(__file__).parents[1] / "examples" / "images"
STEPS = 8  # of decoding in each pair
QUESTION = "What colour is the shape in the picture, and is there a triangle?"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--base", choices=("q4_1", "float16"), default="q4_1")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the adapter")
    arguments = parser.parse_args()
    if importlib.util.find_spec("llama_cpp") is None:
        print(
            "llama.cpp is not installed, and nothing was measured: run `make llama-cpp`, which compiles it in minutes."
        )
        return
    torch.set_num_threads(arguments.threads)
    eyes = vlora.load("nano", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        base = packaged_language_model()
        if arguments.base == "float16":
            base = in_half_precision(base, Path(folder, "base.gguf"))
        with LlamaCpp(base, threads=arguments.threads) as llm:
            result = measure(eyes, llm, Path(folder), arguments.pairs, DTYPES[arguments.dtype])
    report = {"commit": commit(), "machine": platform.processor() or platform.machine(), **vars(arguments), **result}
    show(report)
    print(json.dumps(report))


def measure(eyes: vlora.Eyes, llm: LlamaCpp, folder: Path, pairs: int, dtype: torch.dtype) -> dict[str, Any]:
    """Milliseconds of every step, the two ways in turns."""
    ids = llm.tokens(render(QUESTION, eyes.processor, 1))
    seen = [eyes.adapter(IMAGES / f"shape-{number}.png") for number in (1, 2)]
    times: dict[str, list[float]] = {}

    def timed(step: str, function: Callable[[], object], keep: bool) -> None:
        began = time.perf_counter()
        function()
        if keep:
            times.setdefault(step, []).append((time.perf_counter() - began) * 1000)

    with Template(seen[0], dtype=dtype) as template:
        for number in range(pairs + 2):  # two to warm up
            keep, image = number >= 2, seen[number % 2]
            timed("write", lambda image=image: save_file(image, folder / "a.gguf", dtype=dtype, force=True), keep)
            timed("put", lambda image=image: template.put(image), keep)
            for way in ("bare", "worn") if number % 2 else ("worn", "bare"):
                if way == "worn":
                    timed("wear", lambda: llm.wear(template), keep)
                else:
                    llm.wear(None)
                llm.clear()
                timed(f"{way} prefill", lambda: llm.step(ids), keep)
                timed(f"{way} decode", lambda: [llm.step(ids[:1]) for _ in range(STEPS)], keep)
        size = len(template)
    for step in ("bare decode", "worn decode"):
        times[step] = [value / STEPS for value in times[step]]
    return {
        "text_tokens": len(ids),
        "adapter_bytes": size,
        "milliseconds": {step: spread(values) for step, values in times.items()},
        "ratios": {step: ratio(times[f"worn {step}"], times[f"bare {step}"]) for step in ("prefill", "decode")},
    }


def spread(values: list[float]) -> list[float]:
    """Minimum, quartile, median, quartile."""
    return [round(value, 3) for value in (min(values), *statistics.quantiles(values, n=4))]


def ratio(worn: list[float], bare: list[float]) -> list[float]:
    """Of the minima; and the quartiles of the ratio pair by pair."""
    quarters = statistics.quantiles([a / b for a, b in zip(worn, bare, strict=True)], n=4)
    return [round(value, 3) for value in (min(worn) / min(bare), *quarters)]


def in_half_precision(source: Path, path: Path) -> Path:
    """A GGUF with its matrices in float16 and everything else as it was."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    skipped = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
    for key, field in reader.fields.items():
        if not key.startswith(skipped):
            kinds = field.types
            writer.add_key_value(key, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float32 if values.ndim == 1 else np.float16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def show(report: dict[str, Any]) -> None:
    """A table for people."""
    print(
        f"{report['text_tokens']} text tokens, {report['threads']} threads, {report['pairs']} pairs, "
        f"base {report['base']}, adapter {report['dtype']} ({report['adapter_bytes'] / 1e6:.1f} MB), "
        f"commit {report['commit']}"
    )
    for step, (least, low, middle, high) in report["milliseconds"].items():
        print(f"{step:>14}: least {least:8.2f} ms, median {middle:8.2f} ({low:.2f}-{high:.2f})")
    for step, (least, low, middle, high) in report["ratios"].items():
        print(f"{step:>14}: worn / bare {least:.3f} of minima, median {middle:.3f} ({low:.3f}-{high:.3f})")


def commit() -> str:
    """The commit this was run on, or `unknown`."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
