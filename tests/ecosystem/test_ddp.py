"""Two processes that average their gradients, one of them without a single image."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.ecosystem.people import save_folder
from tests.ecosystem.ranks import FORMS, ROWS, batch_of, gradients, learner

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    folder = str(save_folder(tmp_path))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "tests.ecosystem.ranks", folder],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]

    model = learner(folder, "none")
    model(**batch_of(folder, [*ROWS[0], *ROWS[1]]), supervised_only=True, use_cache=False).loss.backward()
    expected = gradients(model)
    assert all(expected[name].any() for name in expected if ".generator.b." in name)
    for form in FORMS:
        for step in range(2):
            given = load_file(f"{folder}/{form}-{step}")
            assert given.keys() == expected.keys()
            for name, gradient in expected.items():
                told = f"{name} at step {step} with checkpointing {form!r}"
                torch.testing.assert_close(given[name], gradient, rtol=1e-4, atol=1e-6, msg=told)
