"""Compiled decoder blocks: loss and gradients of the blocks as they are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPast

from scripts import train_compiled
from scripts.train_compiled import PART, RoundedProduct, _in_parts, _seconds, compile_blocks, rounded_matrix
from vlora.errors import InputError
from vlora.train import run
from vlora.train.config import load_config
from vlora.train.learner import Learner, build
from vlora.train.loader import MicroBatches, World, loader, looks_of, steps_of

OPTIONS = [
    "model.generator.targets=[v,o,gate,up]",
    "model.attention=eager",
    "data.questions_per_image=4",
    "train.images_per_step=12",  # a whole part and some more
]
CPU = torch.device("cpu")


def learner_and_batch(path: Path, *options: str) -> tuple[Learner, dict[str, Any]]:
    config = load_config(path, [*OPTIONS, *options])
    torch.manual_seed(0)
    learner = build(config, CPU)
    for name, parameter in learner.bridge.named_parameters():
        if name.startswith("b"):  # zero at the start, and nothing else would have a gradient
            torch.nn.init.normal_(parameter, std=0.3)
    looks = looks_of(config, learner)
    micro = MicroBatches(steps_of(config, looks), first=0, last=1, world=World(1, 0, 1))
    batch = next(iter(loader(looks, micro, learner.collator(), workers=0, device=CPU)))
    return learner, {name: value for name, value in batch.items() if name != "seen"}


def loss_and_gradient(learner: Learner, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    learner.model.train().zero_grad()
    loss = learner.model(**batch, supervised_only=True, use_cache=False).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in learner.bridge.parameters()])  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",  # with one layer the other block of the two is bare: one that leads to what learns, or not
    [
        ["model.generator.layers=[0]"],
        ["model.generator.layers=[1]"],
        # At alpha 64 both q and k are in the hundreds, and softmax makes of a last digit a thousandth of the gradient.
        ["model.generator.factors=b", "model.generator.targets=[q,k,up,down]", "model.generator.alpha=4"],
        ["model.generator.factors=ab"],
        ["paradigm=visual-tokens"],
    ],
    ids=lambda options: options[0],
)
def test_loss_and_gradients_are_those_of_the_blocks_as_they_are(tiny_config: Path, options: list[str]) -> None:
    learner, batch = learner_and_batch(tiny_config, *options)
    loss, gradient = loss_and_gradient(learner, batch)
    plain = [layer.forward for layer in learner.language_model.layers]  # type: ignore[union-attr]
    compile_blocks(learner.model, int8=False)
    compiled_loss, compiled = loss_and_gradient(learner, batch)
    torch.testing.assert_close(compiled_loss, loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(compiled, gradient, atol=1e-5, rtol=1e-3)

    for layer, forward in zip(learner.language_model.layers, plain, strict=True):  # type: ignore[arg-type]
        layer.forward = forward
    compile_blocks(learner.model, int8=True)
    rounded_loss, rounded = loss_and_gradient(learner, batch)
    assert rounded_loss != loss
    assert abs(rounded_loss - loss) < 0.02 * loss
    assert F.cosine_similarity(rounded, gradient, dim=0) > 0.95


@pytest.mark.slow
def test_in_bfloat16_the_generator_is_near_what_it_is_in_float32(tiny_config: Path) -> None:
    learner, batch = learner_and_batch(tiny_config, "model.dtype=bfloat16")
    loss, gradient = loss_and_gradient(learner, batch)
    compile_blocks(learner.model, int8=False)
    compiled_loss, compiled = loss_and_gradient(learner, batch)
    made = learner.model.model.perceptual_weights(batch["pixel_values"], None, len(batch["pixel_values"]))
    assert made.values.dtype == torch.bfloat16
    assert abs(compiled_loss - loss) < 0.01 * loss
    assert compiled.dtype == torch.float32
    assert F.cosine_similarity(compiled, gradient, dim=0) > 0.98


def test_packed_rows_are_read_in_parts_as_wide_as_their_longest() -> None:
    lengths = [3] * PART + [4, 7]
    positions = torch.zeros(len(lengths), 9, dtype=torch.long)
    for row, length in enumerate(lengths):
        positions[row, :length] = torch.arange(length)
    shapes = []

    def plain(**given: Any) -> BaseModelOutputWithPast:
        shapes.append((given["input_ids"].shape, given["position_ids"].shape, given["attention_mask"].shape))
        return BaseModelOutputWithPast(last_hidden_state=given["input_ids"][..., None].float())

    ids = torch.arange(positions.numel()).view_as(positions) * (positions > 0)
    mask = torch.zeros(len(lengths), 1, 9, 9)
    given = {"input_ids": ids, "position_ids": positions, "attention_mask": mask, "use_cache": False}
    read = _in_parts(plain, **given).last_hidden_state
    assert shapes == [((PART, 3), (PART, 3), (PART, 1, 3, 3)), ((2, 7), (2, 7), (2, 1, 7, 7))]
    assert read[..., 0].tolist() == ids.tolist()
    with torch.no_grad():
        _in_parts(plain, **given)
    assert shapes[2:] == [((10, 9), (10, 9), (10, 1, 9, 9))]


def test_whole_numbers_are_multiplied_exactly() -> None:
    whole = torch.Generator().manual_seed(0)
    weight, x = (torch.randint(-126, 127, shape, generator=whole).float() for shape in ((24, 32), (20, 32)))
    grad = torch.randint(-126, 127, (20, 24), generator=whole).float()
    for matrix in (weight, weight.T, x, grad):
        matrix[:, 0] = 127  # so that the scale of every row is one
    x.requires_grad_()
    y: Any = RoundedProduct.apply(x, *rounded_matrix(weight))
    torch.testing.assert_close(y, x @ weight.T, rtol=1e-5, atol=0)
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad @ weight, rtol=1e-5, atol=1e-2)


def test_int8_is_refused_where_it_is_slower(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "build", run.build)  # which `main` replaces
    monkeypatch.setattr(train_compiled, "int8_pays", lambda: False)
    with pytest.raises(SystemExit) as exit:
        train_compiled.main([str(tiny_config), "--run-dir", str(tmp_path / "run"), "--int8"])
    assert exit.value.code == 2
    assert "take longer than in float32: leave --int8 out" in " ".join(capsys.readouterr().err.split())


def test_what_pays_is_measured() -> None:
    x = torch.ones(8, 8)
    assert 0 < _seconds(torch.mm, x, x) < _seconds(lambda *_: time.sleep(0.01) or x)


def test_another_model_is_refused(tiny_config: Path) -> None:
    learner = build(load_config(tiny_config, ["model.generator.targets=[v,mlp]"]), CPU)
    with pytest.raises(InputError, match="wears them at v mlp: use `vlora train`"):
        compile_blocks(learner.model, int8=False)
