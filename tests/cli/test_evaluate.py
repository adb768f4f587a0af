"""`vlora evaluate`: the keys that others rely on, the saved answers, and refusals before any work."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Process, Run, one_sentence
from vlora.api import Eyes

KEYS = {"task", "split", "n", "accuracy", "interval", "control", "model", "seconds", "by_kind"}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("easy_vqa") is None, reason="easy-VQA is not installed")


def test_json(run: Run, loaded: Eyes) -> None:
    result = run("evaluate", "easy-vqa", "--limit", 12, "--batch-size", 5, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert set(facts) == KEYS
    assert (facts["task"], facts["split"], facts["n"], facts["control"]) == ("easy-vqa", "test", 12, "none")
    assert facts["interval"][0] <= facts["accuracy"] <= facts["interval"][1]
    assert sum(part["n"] for part in facts["by_kind"].values()) == 12
    assert facts["model"] == loaded.name


def test_saved_answers(run: Run, loaded: Eyes, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    result = run("evaluate", "easy-vqa", "--limit", 5, "--save", path, "--json")
    assert json.loads(result.stdout)["answers_file"] == str(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 5
    assert all(set(row) == {"image_id", "question", "answer", "prediction", "correct"} for row in rows)
    assert [p.name for p in tmp_path.iterdir()] == ["answers.jsonl"]


@pytest.mark.usefixtures("no_loading")
def test_question_only_needs_no_model(run: Run) -> None:
    result = run("evaluate", "easy-vqa", "--control", "question-only", "--json")
    facts = json.loads(result.stdout)
    assert (facts["n"], facts["model"]) == (9673, None)
    assert facts["accuracy"] == pytest.approx(0.670, abs=0.001)


@pytest.mark.usefixtures("no_loading")
def test_text(run: Run) -> None:
    result = run("evaluate", "easy-vqa", "--control", "question-only")
    assert result.exit_code == 0
    assert "control question-only: accuracy 0.6700 (95 % interval 0.6606 to 0.6793)" in result.stdout
    assert all(kind in result.stdout for kind in ("color", "shape", "yes/no"))


@pytest.mark.parametrize("control", ["shuffled", "no-image"])
def test_controls(run: Run, loaded: Eyes, control: str) -> None:
    result = run("evaluate", "easy-vqa", "--control", control, "--limit", 4, "--json")
    assert json.loads(result.stdout)["control"] == control


@pytest.mark.usefixtures("no_loading")
def test_target_that_cannot_be_written(run: Run, tmp_path: Path) -> None:
    assert "is a folder" in one_sentence(run("evaluate", "easy-vqa", "--save", tmp_path))
    assert "does not exist" in one_sentence(run("evaluate", "easy-vqa", "--save", tmp_path / "no" / "a.jsonl"))


@pytest.mark.parametrize(
    "arguments",
    [("hard-vqa",), ("easy-vqa", "--limit", "0"), ("easy-vqa", "--split", "val"), ("easy-vqa", "--control", "x")],
)
def test_usage(run: Run, arguments: tuple[str, ...]) -> None:
    result = run("evaluate", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


SUITE = ("evaluate", "nano-suite", "--only", "scenes/colour", "--only", "scenes/count", "--limit", 4)


def test_suite(run: Run, loaded: Eyes, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    result = run(*SUITE, "--model", "tiny", "--save", path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert set(facts) == {"task", "model", "seconds", "tasks", "answers_file"}
    assert list(facts["tasks"]) == ["scenes/colour", "scenes/count"]
    for task in facts["tasks"].values():
        assert set(task) == {"n", "accuracy", "interval", "target", "controls"}
        assert set(task["controls"]) == {"shuffled", "no-image", "question-only"}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["task"] for row in rows] == ["scenes/colour"] * 4 + ["scenes/count"] * 4


@pytest.mark.usefixtures("loaded")
def test_suite_with_what_the_shipped_model_is_compared_with(run: Run) -> None:
    facts = json.loads(run(*SUITE, "--control", "none", "--json").stdout)
    assert facts["compared_with"]["static-lora"]["steps"] > 0
    assert "controls" not in facts["tasks"]["scenes/colour"]
    assert facts["tasks"]["scenes/colour"]["static-lora"]["n"] >= 100


@pytest.mark.usefixtures("loaded")
def test_suite_as_text(run: Run) -> None:
    result = run(*SUITE, "--control", "question-only")
    assert result.exit_code == 0
    assert all(word in result.stdout for word in ("scenes/colour", "scenes/count", "question-only", "0.970"))


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nano-suite", "--split", "train"), "has the split test only"),
        (("easy-vqa", "--only", "scenes/colour"), "--only chooses among what nano-suite asks"),
        (("easy-vqa", "--first", 7), "--first chooses among what nano-suite asks"),
    ],
)
def test_suite_usage(run: Run, arguments: tuple[str, ...], said: str) -> None:
    assert said in one_sentence(run("evaluate", *arguments))


@pytest.mark.usefixtures("loaded")
def test_suite_from_another_picture_on(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    facts = json.loads(run(*SUITE, "--first", 50_000, "--control", "none", "--save", path, "--json").stdout)
    assert facts["first"] == 50_000
    numbers = [int(json.loads(line)["image"].rsplit("/", 1)[1]) for line in path.read_text().splitlines()]
    assert min(numbers) >= 50_000


@pytest.mark.usefixtures("loaded")
def test_suite_without_such_a_task(run: Run) -> None:
    said = one_sentence(run("evaluate", "nano-suite", "--only", "scenes/smell"))
    assert "There is no task scenes/smell: choose from easy-vqa, scenes/colour" in said


@pytest.mark.parametrize("arguments", [("nano-suite", "--only", "scenes/colour"), ("easy-vqa",)])
def test_more_views_than_the_model_has(run: Run, tiny: Path, arguments: tuple[str, ...]) -> None:
    said = one_sentence(run("evaluate", *arguments, "--limit", 4, "--model", tiny, "--views", 2))
    assert "2 views of an image are not possible: give 1 to 1, as many as this model has" in said
    once = run("evaluate", *arguments, "--limit", 4, "--model", tiny, "--views", 1, "--control", "none", "--json")
    assert (once.exit_code, once.stderr) == (0, "")


def test_nano(process: Process) -> None:
    done = process("evaluate", "easy-vqa", "--limit", 20, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert (facts["n"], facts["model"]) == (20, "nano")
