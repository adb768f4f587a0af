"""A tiny model with random weights."""

from __future__ import annotations

import pytest

from tests.cli.tiny import tiny_model, tiny_processor
from vlora.api import Eyes


@pytest.fixture(scope="session")
def eyes() -> Eyes:
    return Eyes(tiny_model(), tiny_processor(), name="tiny")
