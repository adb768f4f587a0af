"""Who may import whom, read from the sources, and what an import costs, seen in a fresh process.

    errors <- {model, figures, cache} <- {nano, data, export, album, cost, compare} <- {train, evaluate, serve} <- cli

An arrow points at what may be imported. The files of the top level (`vlora`, `vlora.api`, `vlora.loading`) see
`errors`, `model`, `nano`, `data`, `album` and `export`; `train` and the rest of its row, and `cli`, may use them.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "vlora"
MODULES = sorted(SOURCE.rglob("*.py"))

ROWS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"model", "figures", "cache"}),
    frozenset({"nano", "data", "export", "album", "cost", "compare"}),
    frozenset({"vlora", "api", "loading"}),  # the public face, between the parts and the programs
    frozenset({"train", "evaluate", "serve"}),
    frozenset({"cli"}),
)
ROW_OF = {part: row for row, parts in enumerate(ROWS) for part in parts}
FACE = frozenset({"vlora", "api", "loading"})
SEEN_BY_FACE = frozenset({"errors", "model", "nano", "data", "album", "export"}) | FACE

# (importer, imported): why the one exception is right. Parts of one row do not import each other.
ALLOWED: dict[tuple[str, str], str] = {
    ("album", "data"): "an album opens images and names them by their hash, as everything else does",
}


def part_of(name: str) -> str:
    """The part a dotted name belongs to: `vlora.model.weights` -> `model`, `vlora.load` -> `vlora`."""
    pieces = name.split(".")
    is_part = len(pieces) > 1 and (pieces[1] in ROW_OF or _exists(pieces[1]))
    return pieces[1] if is_part else "vlora"


def _exists(part: str) -> bool:
    return (SOURCE / part).is_dir() or (SOURCE / f"{part}.py").is_file()


def dotted(path: Path) -> str:
    pieces = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(pieces[:-1] if pieces[-1] == "__init__" else pieces)


def imported_names(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Every (line, dotted name) below `vlora` that a module imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: None if is_package else -1]
                above = above[: len(above) - (node.level - 1)]
                base = ".".join([*above, base]).rstrip(".")
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "vlora")


def may_import(importer: str, imported: str) -> bool:
    """Whether one part of the tree may import another."""
    if importer == imported or (importer, imported) in ALLOWED:
        return True
    if importer in FACE:
        return imported in SEEN_BY_FACE
    return ROW_OF[imported] < ROW_OF[importer]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_follow_the_arrows(path: Path) -> None:
    module = dotted(path)
    importer = part_of(module)
    assert importer in ROW_OF, f"{importer} is in no row: draw it into ROWS, and into docs/architecture.md"
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    wrong = [
        f"line {line}: {importer} must not import {name}"
        for line, name in imported_names(tree, module, is_package=path.name == "__init__.py")
        if not may_import(importer, part_of(name))
    ]
    assert not wrong, f"{module}\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import vlora.model.weights", "model"),
        ("from vlora import model", "model"),
        ("from vlora import load", "vlora"),
        ("from vlora.serve import engine", "serve"),
        ("from ..cli import main", "cli"),
        ("from .formats import Sample", "data"),
        ("def later():\n    from vlora.train import run", "train"),
    ],
)
def test_the_reader_sees_every_form_of_import(source: str, found: str) -> None:
    [(_, name)] = imported_names(ast.parse(source), "vlora.data.collate", is_package=False)
    assert part_of(name) == found


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("model", "errors", True),
        ("model", "data", False),
        ("model", "vlora", False),
        ("nano", "data", False),
        ("model", "figures", False),
        ("nano", "cache", True),
        ("data", "cache", True),
        ("compare", "figures", True),
        ("compare", "data", False),
        ("train", "compare", True),
        ("evaluate", "data", True),
        ("evaluate", "train", False),
        ("vlora", "nano", True),
        ("vlora", "train", False),
        ("cli", "vlora", True),
        ("errors", "model", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def modules_after(*arguments: str) -> set[str]:
    """The top-level modules that a fresh `python ARGUMENTS` has imported by its end."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


def test_import_vlora_is_light() -> None:
    heavy = modules_after("-c", "import vlora") & {"ray", "gradio", "fastapi", "trl"}
    assert not heavy, f"`import vlora` imports {sorted(heavy)}"


def test_help_is_quick() -> None:
    heavy = modules_after("-m", "vlora.cli", "--help") & {"torch", "transformers"}
    assert not heavy, f"`vlora --help` imports {sorted(heavy)}"


def test_all_is_honest() -> None:
    vlora = importlib.import_module("vlora")
    missing = [name for name in vlora.__all__ if not hasattr(vlora, name)]
    assert not missing, f"vlora.__all__ promises {missing}"
    assert len(set(vlora.__all__)) == len(vlora.__all__)
