"""Muon's steps are those of its definition and of torch's, and a run with it is a run like any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.processes import largest_loss_difference, losses
from vlora.train.config import load_config
from vlora.train.learner import build
from vlora.train.muon import COEFFICIENTS, ROUNDS, Muon, orthogonal
from vlora.train.run import train

MUON = ["train.optimizer=muon", "train.stored_dtype=float32"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers like those of a gradient, with a few directions that dominate."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    return x + 10 * torch.outer(torch.randn(shape[0], generator=generator), torch.randn(shape[1], generator=generator))


@pytest.mark.parametrize("shape", [(96, 24), (24, 96), (32, 32), (7, 1)])
def test_rounds_on_the_smaller_side_are_newton_schulz(shape: tuple[int, int]) -> None:
    x = drawn(*shape).double()
    x = x / x.norm()
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    torch.testing.assert_close(orthogonal(drawn(*shape)).double(), x, atol=2e-4, rtol=1e-3)


def test_singular_values_are_about_one() -> None:
    values = torch.linalg.svdvals(orthogonal(drawn(96, 24)))
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_steps_are_torchs() -> None:
    """Matrices move as by torch's Muon, which rounds to bfloat16; the rest, to the bit, as by its AdamW."""
    begin = {"matrix": drawn(48, 16), "vector": drawn(5, 5).view(-1)}
    ours, theirs = ({name: x.clone().requires_grad_() for name, x in begin.items()} for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.1}
    groups = [{"params": [ours[name]], "orthogonal": name == "matrix", **options} for name in begin]
    mine = Muon(groups, betas=(0.9, 0.98))
    others = [
        torch.optim.Muon([theirs["matrix"]], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([theirs["vector"]], lr=0.01, weight_decay=0.1, betas=(0.9, 0.98), fused=True),
    ]
    for step in range(5):
        for weights in (ours, theirs):
            weights["matrix"].grad = drawn(48, 16, seed=step)
            weights["vector"].grad = drawn(5, 5, seed=step).view(-1)
        for optimizer in (mine, *others):
            optimizer.step()
    assert torch.equal(ours["vector"], theirs["vector"])
    moved, expected = ours["matrix"] - begin["matrix"], theirs["matrix"] - begin["matrix"]
    assert (moved - expected).norm() < 0.02 * expected.norm()


def test_only_matrices_that_map_are_made_orthogonal(tiny_config: Path) -> None:
    settings = load_config(tiny_config, [*MUON, "stage=finetune", "train.language_model=full", "train.vision=trained"])
    learner = build(settings, torch.device("cpu"))
    groups = learner.groups(settings.train)
    orthogonal = {parameter for group in groups if group["orthogonal"] for parameter in group["params"]}
    assert {parameter.ndim for parameter in orthogonal} == {2}
    generator, llm = learner.model.model.generator, learner.model.model.language_model
    trunk = next(iter(generator.trunks.values()))
    for parameter in (generator.project.weight, *generator.b.values(), llm.layers[0].self_attn.q_proj.weight):
        assert parameter in orthogonal
    for parameter in (generator.positions, trunk.queries, llm.embed_tokens.weight, llm.norm.weight):
        assert parameter.requires_grad
        assert parameter not in orthogonal


def test_a_run_learns_and_goes_on(tiny_config: Path, tmp_path: Path) -> None:
    settings = load_config(tiny_config, [*MUON, "train.learning_rate=0.01"])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(settings, run_dir=whole)
    shutil.copytree(whole, broken)
    for left in ("checkpoint-12", "final"):
        shutil.rmtree(broken / left)
    train(settings, run_dir=broken, resume="auto")
    assert largest_loss_difference(whole, broken) < 1e-4
    assert losses(whole)[12] < losses(whole)[1]
    adamw = load_config(tiny_config, ["train.learning_rate=0.01"])
    train(adamw, run_dir=tmp_path / "adamw")
    assert losses(tmp_path / "adamw")[1] == losses(whole)[1]
    assert losses(tmp_path / "adamw")[12] != losses(whole)[12]
