"""Runs in processes of their own: to be killed, and to train together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def command(config: Path, run: Path, *options: str, processes: int = 1) -> list[str]:
    """`vlora train`, by torchrun if there are several processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    program = [*(torchrun if processes > 1 else []), "-m", "vlora.cli", "train", str(config), "--run-dir", str(run)]
    return [sys.executable, *program, *options]


def start(command: list[str], *, threads: int = 1) -> subprocess.Popen[str]:
    """Start it, with as many threads as a test's own process would have."""
    paths = [str(ROOT / "src"), str(ROOT), *sys.path]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(command: list[str], *, threads: int = 1) -> None:
    """Run it to its end."""
    process = start(command, threads=threads)
    output, errors = process.communicate(timeout=280)
    assert process.returncode == 0, (output + errors)[-4000:]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(run / "metrics.jsonl")}


def ids_by_step(run: Path) -> dict[int, list[str]]:
    """What each step has seen, over all processes."""
    seen: dict[int, list[str]] = {}
    for path in sorted(run.glob("ids-*.jsonl")):
        for line in lines(path):
            seen.setdefault(line["step"], []).extend(line["ids"])
    return seen


def check_every_id_once(run: Path, *, steps: int, per_epoch: int, samples: int) -> None:
    """Every epoch holds every id exactly once."""
    seen = ids_by_step(run)
    assert sorted(seen) == list(range(1, steps + 1))
    for begin in range(1, steps + 1, per_epoch):
        epoch = Counter(name for step in range(begin, begin + per_epoch) for name in seen.get(step, []))
        assert set(epoch.values()) == {1}
        if begin + per_epoch - 1 <= steps:
            assert len(epoch) == samples


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two final models."""
    a, b = (load_weights(run / "final") for run in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def largest_loss_difference(one: Path, other: Path) -> float:
    a, b = losses(one), losses(other)
    assert a.keys() == b.keys()
    return max(abs(a[step] - b[step]) for step in a)
