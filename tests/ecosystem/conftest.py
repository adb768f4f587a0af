"""One folder for all tests that only read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlora  # registers the models with the Auto classes
from tests.ecosystem.people import save_folder

assert vlora.__version__


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full checkpoint with its processor."""
    return save_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture
def model(folder: Path) -> Any:
    """The model of the folder, loaded as any other model."""
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture(scope="session")
def processor(folder: Path) -> Any:
    """The processor of the folder."""
    return AutoProcessor.from_pretrained(folder)
