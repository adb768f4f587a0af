"""`vlora inspect`: counts that add up, with and without an image."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from tests.cli.conftest import Process, Run, one_sentence
from tests.cli.tiny import tiny_language_model, tiny_processor
from vlora.api import Eyes
from vlora.model import GeneratorConfig
from vlora.model.assemble import assemble


def test_model(run: Run, tiny_eyes: Eyes, tiny: Path) -> None:
    result = run("inspect", "--model", tiny, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    parts = facts["parts"]
    assert sum(part["parameters"] for part in parts.values()) == sum(p.numel() for p in tiny_eyes.model.parameters())
    assert parts["generator"]["trainable"]
    assert {part["dtype"] for part in parts.values()} == {"float32"}
    assert facts["layers"] == [0, 1]
    assert [(t["target"], t["in_dim"], t["out_dim"], t["mergeable"]) for t in facts["targets"]] == [
        ("q", 32, 32, True),
        ("v", 32, 16, True),
        ("mlp", 32, 32, False),
    ]
    assert (facts["visual_parameters_bytes"], facts["perceptual_weights_bytes"]) == (384, 2 * 3 * 32 * 4 * 4)
    assert facts["generator"]["rank"] == 4
    assert (facts["generator"]["head"], facts["generator"]["factors"]) == ("linear", "a")
    assert "dictionary_size" not in facts["generator"]
    assert "deltas" not in facts


def test_bytes_are_those_of_a_real_image(run: Run, loaded: Eyes, photo: Path) -> None:
    seen = loaded.perceive(str(photo))
    facts = json.loads(run("inspect", photo, "--json").stdout)
    assert facts["visual_parameters_bytes"] == seen.nbytes
    assert len(facts["deltas"]) == 6
    for row in facts["deltas"]:
        assert row["norm"] > 0
        assert (row["relative_norm"] is None) == (row["target"] == "mlp")
        assert 1 <= row["stable_rank"] <= row["effective_rank"] <= 4 + 1e-9


def test_text(run: Run, loaded: Eyes, photo: Path) -> None:
    result = run("inspect", photo)
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("clip_vision_model", "vlora_generator", "llama", "a bypass", "0 visual tokens", "effective rank"):
        assert words in result.stdout


@pytest.mark.usefixtures("no_loading")
def test_bad_image(run: Run, tmp_path: Path) -> None:
    assert "does not exist" in one_sentence(run("inspect", tmp_path / "no.png"))


def test_plots(run: Run, loaded: Eyes, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "figures" / "of a photo"
    result = run("inspect", photo, "--plot", folder, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert facts["plots"] == [str(folder / "deltas.png"), str(folder / "attention.png")]
    assert sorted(path.name for path in folder.iterdir()) == ["attention.png", "deltas.png"]
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.load()
            assert len(image.getcolors(1 << 20) or "many") > 20
    result = run("inspect", photo, "--plot", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split(maxsplit=1)[1] for line in result.stdout.splitlines() if "written" in line] == facts["plots"]


def test_damaged_weights_are_drawn_and_are_json(run: Run, loaded: Eyes, photo: Path, tmp_path: Path) -> None:
    positions = loaded.model.model.generator.positions
    whole = positions.detach().clone()
    try:
        with torch.no_grad():
            positions.fill_(torch.nan)
        facts = json.loads(
            run("inspect", photo, "--plot", tmp_path / "figures", "--json").stdout, parse_constant=pytest.fail
        )
    finally:
        with torch.no_grad():
            positions.copy_(whole)
    assert {row["effective_rank"] for row in facts["deltas"]} == {None}
    assert len(facts["plots"]) == 2


class PooledConfig(PreTrainedConfig):
    """Three features of the whole picture, of no place in it."""

    model_type = "pooled"
    hidden_size = 4
    patches = 3


class Pooled(PreTrainedModel):
    """The means of the three colours, of their squares, and of their cubes."""

    config_class = PooledConfig

    def __init__(self, config: PooledConfig) -> None:
        super().__init__(config)
        self.out = nn.Linear(3, config.hidden_size)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutput:
        powers = torch.stack([pixel_values.pow(n).mean((2, 3)) for n in (1, 2, 3)], dim=1)
        return BaseModelOutput(last_hidden_state=self.out(powers))


def test_features_without_a_place(run: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = GeneratorConfig(targets=("q",), layers=(0,), rank=2, dim=8, depth=1, heads=2)
    model = assemble(causal_lm=tiny_language_model(), vision_tower=Pooled(PooledConfig()), generator=generator)
    monkeypatch.setattr("vlora.loading.load", lambda *_, **__: Eyes(model, tiny_processor(), name="pooled"))
    result = run("inspect", photo, "--model", tmp_path, "--plot", tmp_path / "figures", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["plots"] == [str(tmp_path / "figures" / "deltas.png")]
    assert "the 3 features of an encoder of type 'pooled' form no grid" in result.stderr.replace("\n", " ")


@pytest.mark.usefixtures("no_loading")
def test_plots_that_cannot_be(run: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "name an IMAGE as well" in one_sentence(run("inspect", "--plot", tmp_path))
    for folder in (photo, photo / "figures"):
        assert "is a file: name a folder" in one_sentence(run("inspect", photo, "--plot", folder))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "vlora-mllm[plot]"' in one_sentence(run("inspect", photo, "--plot", tmp_path / "figures"))
    assert not (tmp_path / "figures").exists()


def test_a_figure_that_cannot_be_written(run: Run, loaded: Eyes, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "figures" / "deltas.png").mkdir(parents=True)
    assert "cannot be written (Is a directory)" in one_sentence(run("inspect", photo, "--plot", tmp_path / "figures"))
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["deltas.png"]


def test_nano(process: Process, photo: Path) -> None:
    done = process("inspect", photo, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    trainable = {name: part["trainable"] for name, part in facts["parts"].items()}
    assert trainable == {"vision": False, "generator": True, "language_model": False}
    assert facts["parts"]["language_model"]["parameters"] == 134_515_008
    assert all(target["mergeable"] for target in facts["targets"])
    assert len(facts["deltas"]) == len(facts["layers"]) * len(facts["targets"])
