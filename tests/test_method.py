"""docs/method.md: every file, name and option in it is there, and every equation says where it is computed."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlora.model import GeneratorConfig, VLoRAConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
CODE = [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", TEXT)]
# `path.py`: `name`, `name`; over line ends too
REFERENCES = [
    (path, name)
    for path, names in re.findall(r"`(src/[\w/]+\.py)`:((?:\s+`[\w.]+`,?)+)", TEXT)
    for name in re.findall(r"`([\w.]+)`", names)
]
OPTIONS = sorted({found for found in CODE if re.fullmatch(r"\w+: \w+", found)})


@pytest.mark.parametrize(("path", "name"), REFERENCES, ids=lambda part: part.rsplit("/", 1)[-1])
def test_code(path: str, name: str) -> None:
    module = importlib.import_module(Path(path).relative_to("src").with_suffix("").as_posix().replace("/", "."))
    reduce(getattr, name.split("."), module)  # AttributeError: it is not there
    assert Path(module.__file__ or "") == ROOT / path


@pytest.mark.parametrize("path", sorted({found for found in CODE if re.fullmatch(r"[\w.]+/[\w/.]+", found)}))
def test_files(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_name_of_ours_is_a_reference() -> None:
    """A class or a `Class.method` in the text, whether or not its file stands before it."""
    names = {found for found in CODE if re.fullmatch(r"[A-Z]\w+[a-z]\w*(\.\w+)?", found)} - {"GeneratorConfig"}
    assert names <= {name for _, name in REFERENCES}


def test_every_equation_says_where() -> None:
    sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    numbered = [
        section for section in sections if section[0].isdigit() and re.search(r"^    \S", section, re.MULTILINE)
    ]
    assert len(numbered) == 9  # all but that about cost
    for section in numbered:
        assert any(f"`{path}`" in section for path, _ in REFERENCES), section.splitlines()[0]


@pytest.mark.parametrize("option", OPTIONS)
def test_options(option: str) -> None:
    fields: dict[str, Any] = yaml.safe_load(option)
    ((name, value),) = fields.items()
    if hasattr(GeneratorConfig, name):
        assert getattr(GeneratorConfig(**fields), name) == value
    else:
        assert getattr(VLoRAConfig(image_token_id=3, **fields), name) == value
