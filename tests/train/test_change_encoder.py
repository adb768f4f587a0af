"""A generator that changes its encoder: what it takes over, what it learns, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vlora
from scripts.change_encoder import Change, Distance, Pixels, on_grid
from scripts.change_encoder import main as change_encoder
from tests.helpers import picture
from vlora.errors import InputError
from vlora.model import PerceptualWeights
from vlora.model.efficientnet_lite import image_processor
from vlora.train import run
from vlora.train.config import load_config
from vlora.train.learner import Learner, build

CPU = torch.device("cpu")
# What an image makes, in each form.
FORMS = (
    [],
    ["model.generator.factors=b"],
    ["model.generator.factors=ab", "model.generator.static_rank=1"],
    ["model.generator.head=dictionary", "model.generator.norms=true"],
    ["model.generator.targets=[q,mlp]", "model.generator.queries=separate"],
)


def learner_of(config: Path, *options: str) -> Learner:
    torch.manual_seed(1)
    return build(load_config(config, options), CPU)


def trained(config: Path, folder: Path, *options: str) -> Path:
    """A checkpoint whose images write."""
    learner = learner_of(config, *options)
    for name, parameter in learner.bridge.named_parameters():
        if name.startswith("b"):
            torch.nn.init.normal_(parameter, std=0.3)
    learner.finish(folder)
    return folder


def loss(change: Change) -> float:
    with torch.no_grad():
        return float(change.loss(pixel_values=next(change._images())).loss)


@pytest.mark.parametrize("options", FORMS)
def test_distance_is_that_of_the_dense_matrices(tiny_config: Path, tmp_path: Path, options: list[str]) -> None:
    learner = learner_of(tiny_config, *options)
    model = learner.model.model
    learner.bridge.requires_grad_(False)
    for parameter in learner.bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.manual_seed(0)
    one, other = (model.expand(model.perceive(torch.randn(3, 3, 32, 32))) for _ in range(2))
    expected = 0.0
    for place in one.layout.place_of:
        size = Distance(learner.language_model, one.layout).size[place]
        expected += float((one.delta(*place) - other.delta(*place)).square().sum((1, 2)).mean()) / size**2
    distance = Distance(learner.language_model, one.layout)
    assert float(distance(one, other)) == pytest.approx(expected, rel=1e-4)
    assert float(distance(one, one)) == pytest.approx(0, abs=1e-5 * expected)


def test_the_same_encoder_at_its_size_begins_where_it_was(tiny_config: Path, tmp_path: Path) -> None:
    change = Change(learner_of(tiny_config), vlora.load(trained(tiny_config, tmp_path / "trained"), device="cpu"))
    change.begin()
    assert loss(change) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("options", "teachers"), [(FORMS[0], 2), (FORMS[2], 1)])
def test_only_what_comes_before_the_heads_learns(
    tiny_config: Path, tmp_path: Path, options: list[str], teachers: int
) -> None:
    start = trained(tiny_config, tmp_path / "trained", *options)
    other = [*options, "model.vision_options.image_size=64", "model.vision_options.stages=[3,5]"]
    arguments = [*[str(start)] * teachers, str(tiny_config), "--run-dir", str(tmp_path / "run")]
    settings = ["train.steps=40", "train.learning_rate=0.01", "train.optimizer=muon", *other]
    plain = run.build
    try:
        with pytest.raises(SystemExit) as end:
            change_encoder([*arguments, *[word for setting in settings for word in ("--set", setting)]])
    finally:
        run.build = plain
    assert not end.value.code
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])

    old, new = (vlora.load(folder, device="cpu") for folder in (start, tmp_path / "run/final"))
    assert new.model.config.vision_config.image_size == 64
    have, made = old.model.model.generator.state_dict(), new.model.model.generator.state_dict()
    for name, value in have.items():
        changes = name.startswith(("project", "positions", "trunks", "feature_norm"))
        assert changes or torch.equal(value, made[name]), name
    assert new.ask(picture(0), "What is it?", max_new_tokens=2) is not None


def test_of_several_it_begins_as_the_first_and_their_mean_is_nearest(tiny_config: Path, tmp_path: Path) -> None:
    start = trained(tiny_config, tmp_path / "trained")
    first, second = (vlora.load(start, device="cpu") for _ in range(2))
    for parameter in second.model.model.generator.trunks.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    change = Change(learner_of(tiny_config), first, second)
    change.begin()
    pixels = next(change._images())
    one, other = (teacher(pixels) for teacher in change.teachers)
    apart = float(change.distance(one, other))
    assert apart > 1e-3
    assert loss(change) == pytest.approx(apart / 2, rel=1e-4)  # from the first to itself, and to the second

    mean = PerceptualWeights((one.values + other.values) / 2, one.layout, one.shared)
    change.new.expand = lambda _: mean  # type: ignore[method-assign]
    assert loss(change) == pytest.approx(apart / 4, rel=1e-4)


def test_another_width_begins_nearer_when_fitted(tiny_config: Path, tmp_path: Path) -> None:
    eyes = vlora.load(trained(tiny_config, tmp_path / "trained"), device="cpu")
    change = Change(learner_of(tiny_config, "model.vision_options.stages=[3,5]"), eyes)
    change.fit = lambda: None  # type: ignore[method-assign]
    change.begin()
    unfitted = loss(change)
    Change.fit(change)
    assert loss(change) < 0.7 * unfitted


def test_a_batch_without_images_teaches_nothing(tiny_config: Path, tmp_path: Path) -> None:
    change = Change(learner_of(tiny_config), vlora.load(trained(tiny_config, tmp_path / "trained"), device="cpu"))
    change.begin()
    change.loss().loss.backward()
    gradients = [p.grad for p in change.new.generator.parameters() if p.requires_grad]
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_pixels_as_another_processor_makes_them() -> None:
    given, wanted = image_processor(64), image_processor(32)
    wanted.image_mean, wanted.image_std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    image = picture(0).convert("RGB").resize((256, 256))
    pixels: Any = [processor(image, return_tensors="pt")["pixel_values"] for processor in (given, wanted)]
    assert (Pixels(given, wanted, 32)(pixels[0]) - pixels[1]).abs().mean() < 0.05


def test_another_generator_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    eyes = vlora.load(trained(tiny_config, tmp_path / "trained"), device="cpu")
    for other in ("rank=4", "dim=32", "depth=2", "targets=[v]", "factors=b"):
        with pytest.raises(InputError, match="Only the encoder changes"):
            Change(learner_of(tiny_config, f"model.generator.{other}"), eyes).begin()


def test_a_config_alone_is_no_change(tiny_config: Path) -> None:
    with pytest.raises(SystemExit, match="TRAINED"):
        change_encoder([str(tiny_config), "--run-dir", "run"])


def test_patches_that_are_no_square_are_refused() -> None:
    with pytest.raises(InputError, match="there are 5 and 16"):
        on_grid(torch.zeros(1, 5, 2), 16)
