"""A config file: right ones are read, wrong ones name every wrong field with its path."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlora.errors import ConfigError, InputError
from vlora.train.config import load_config

ROOT = Path(__file__).parents[2]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_of_the_project_is_valid(path: Path) -> None:
    assert load_config(path).name


def test_overrides_are_typed_like_the_file(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path, "name: a\n"),
        ["train.steps=7", "train.learning_rate=0.5", "data.batches=random", "train.report_to=[wandb]"],
    )
    assert (config.train.steps, config.train.learning_rate, config.data.batches) == (7, 0.5, "random")
    assert config.train.report_to == ("wandb",)


def test_an_override_reaches_into_a_list(tmp_path: Path) -> None:
    text = "train: {steps: 1}\ndata: {sources: [{format: llava, path: a.json}, {format: folder, path: b}]}\n"
    config = load_config(
        written(tmp_path, text), ["data.sources.1.path=c", "data.sources.0.weight=2", "data.sources.1.weight=1"]
    )
    assert [(source.path, source.weight) for source in config.data.sources] == [("a.json", 2), ("c", 1)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stage: pretrain\ntrain: {steps: 1, language_model: full}", "train.language_model: stage pretrain keeps it"),
        ("train: {steps: 1, generator: frozen}", "everything is frozen"),
        ("train: {steps: 1, epochs: 1}", "train.steps, train.epochs: give exactly one"),
        ("train: {}", "train.steps, train.epochs: give exactly one"),
        ("train: {steps: 1}\ndata: {sources: []}", "data.sources: there is none"),
        (
            "train: {steps: 1}\ndata: {sources: [{format: folder, weight: 1}, {format: folder}]}",
            "data.sources: give every source a weight",
        ),
        ("train: {steps: 1}\ndata: {sources: [{format: folder, pth: 1}]}", "data.sources.0.pth: unknown; choose from"),
        ("train: {steps: 1, optimizer: muon, parallel: fsdp}", "train.optimizer: muon steps by whole matrices"),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    assert says in str(caught.value)
    assert len(caught.value.problems) == 1


def test_all_wrong_fields_are_named_at_once(tmp_path: Path) -> None:
    text = """
train: {stepz: 5, learning_rate: fast}
data: {questions_per_image: 0}
model: {generator: {targets: [q, z], ranc: 4, depth: 0}, attention: flash}
"""
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    expected = [
        "train.stepz: unknown; choose from",
        "train.learning_rate: ",
        "data.questions_per_image: ",
        "model.attention: ",
        "model.generator.ranc: unknown; choose from",
        "model.generator.targets: z is not a target",
        "model.generator.depth: 0 must be at least 1",
    ]
    found = "\n".join(caught.value.problems)
    assert [part for part in expected if part not in found] == []
    assert len(caught.value.problems) == len(expected)
    assert "'fast'" in found  # what was given


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: [1, 2", "not valid YAML at line"),
        ("just words", "must hold sections"),
        ("", "must hold sections"),
        ("- a\n- b\n", "must hold sections"),
        ("train: 5\n", "train: "),
        ("name: 'a/b'\n", "name: "),
    ],
)
def test_what_is_not_a_config(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_config(written(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config file .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("override", ["train.steps", "=5", "train..steps=5", "name.a=5", "train.steps.0=5"])
def test_a_wrong_override(tmp_path: Path, override: str) -> None:
    with pytest.raises(InputError, match="override"):
        load_config(written(tmp_path, "name: a\ntrain: {steps: 3}\n"), [override])
