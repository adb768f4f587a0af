"""What every test gets: a device where it asks for one, no network, two threads, the same random numbers each time."""

from __future__ import annotations

import os

# Read by the libraries when they are imported, so they come before any import of them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
    CUBLAS_WORKSPACE_CONFIG=":4096:8",
    OMP_WAIT_POLICY="PASSIVE",  # threads of two test processes would wait for each other by keeping both cores busy
)

import random

import hypothesis
import numpy as np
import pytest
import torch

# Two threads everywhere: sums do not depend on how many cores the machine has.
torch.set_num_threads(2)

# A failure seen once is seen again; slow machines do not fail an example.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where a model is: a test that takes it is run on a GPU too, by `make test-gpu`."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.fail("there is no CUDA device here: `make test` leaves these tests out", pytrace=False)
    # Convolutions with the eleven bits of TF32, which cuDNN takes by itself, give another outcome for another batch.
    torch.backends.cudnn.allow_tf32 = False
    return str(request.param)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Starts every test from the same seeds, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
