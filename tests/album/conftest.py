"""A tiny model that sees, images on a disk, and albums of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import TEXT_VOCABULARY, add_noise, tiny_generator_config, tiny_llm, tiny_processor, tiny_vision
from vlora.album import encode
from vlora.api import Eyes
from vlora.model.assemble import assemble

SHAPE = (3, 2, 16)
"""Targets, layers and dim of the tiny model."""


def make_eyes(name: str, generator_seed: int = 1, *, device: str = "cpu") -> Eyes:
    """A model of the same parts each time, whose images matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llm, vision = tiny_llm(vocab_size=TEXT_VOCABULARY), tiny_vision()
        torch.manual_seed(generator_seed)
        generator = tiny_generator_config(targets=("q", "v", "mlp"))
        model = assemble(causal_lm=llm, vision_tower=vision, generator=generator)
        add_noise(model, 0.5)
    return Eyes(model.to(device), tiny_processor(), name=name)


@pytest.fixture(scope="session")
def eyes() -> Eyes:
    return make_eyes("tiny")


@pytest.fixture(scope="session")
def other_eyes() -> Eyes:
    """The same parts, another generator."""
    return make_eyes("other", 2)


def draw(path: Path, seed: int, size: tuple[int, int] = (20, 24)) -> Path:
    """A picture of noise, another for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def tmp_path(tmp_path: Path) -> Generator[Path]:
    """In memory where that can be: an album waits for the disk at every commit, and these tests make many."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten pictures in two folders, one of them twice, and one name twice."""
    folder = tmp_path / "photos"
    for number in range(9):
        draw(folder / f"n{number}.png", number)
    draw(folder / "inner" / "n0.png", 100)
    Image.open(folder / "n1.png").save(folder / "inner" / "twin.bmp")
    return folder


@pytest.fixture
def album(photos: Path, eyes: Eyes, tmp_path: Path) -> Path:
    """An album of them, in shards of four."""
    encode(eyes, photos, tmp_path / "album", batch_size=4, workers=0)
    return tmp_path / "album"
