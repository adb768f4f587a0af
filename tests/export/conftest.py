"""llama.cpp, where it is installed."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture
def llama_cpp(request: pytest.FixtureRequest) -> None:
    """Skip a quick test without llama.cpp, which compiles for minutes; a slow one says how to get it, and fails."""
    if importlib.util.find_spec("llama_cpp") is not None:
        return
    if request.node.get_closest_marker("slow"):
        pytest.fail("llama.cpp is not installed: run `make llama-cpp`, which compiles it in minutes.")
    pytest.skip("llama.cpp is not installed; `make llama-cpp` compiles it in minutes")
