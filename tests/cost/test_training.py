"""The work of a step, against what torch counts when the step is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from tests.compare.tiny import batch_of, tiny_baseline
from tests.cost.test_formulas import ANSWER, QUESTIONS, TEXT, close, macs, shapes_of, tiny_llava
from tests.helpers import VOCABULARY, images, tiny_generator_config, tiny_llm_config, tiny_model, token_ids
from vlora.compare.baseline import baseline_loss
from vlora.cost import shapes
from vlora.cost.bill import Shapes, read_shapes
from vlora.cost.formulas import FLOPS_PER_MAC
from vlora.cost.training import Learning, Rows, lora_parameters, plain_work, step_work
from vlora.model.loss import IGNORED

LORA: dict[str, Any] = {"lora_rank": 3, "lora_targets": ("q", "k", "v", "o", "gate", "up", "down")}
LEARNING = {
    "generator": Learning(),
    "generator and language model": Learning("full"),
    "language model": Learning("full", bridge=False),
    "generator and LoRA": Learning("lora", **LORA),
    "LoRA": Learning("lora", bridge=False, **LORA),
}
ROWS = Rows(TEXT + ANSWER, ANSWER, QUESTIONS)


def learner(learning: Learning, **kind: Any) -> Any:
    model: Any = tiny_model("llama", **kind).train()
    model.requires_grad_(False)
    model.model.generator.requires_grad_(learning.bridge)
    if learning.full:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    if learning.lora:
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        lora = LoraConfig(r=learning.lora_rank, target_modules=names)
        inject_adapter_in_model(lora, model.model.language_model)
    return model


@pytest.mark.parametrize("learning", LEARNING.values(), ids=LEARNING.keys())
@pytest.mark.parametrize("kind", [{}, {"targets": ("v", "o"), "layers": (2,)}], ids=["everywhere", "one layer"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_step_with_weights(learning: Learning, kind: dict[str, Any], checkpointing: bool) -> None:
    model = learner(learning, **kind)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # transformers makes embeddings ask for a gradient, with which the backward pass goes through every block.
        model.disable_input_require_grads()
    ids = token_ids(QUESTIONS, TEXT + ANSWER)
    labels = ids.masked_fill(torch.arange(TEXT + ANSWER) < TEXT, IGNORED)
    losses: list[torch.Tensor] = []

    def forward() -> None:
        more = {"supervised_only": True, "use_cache": False}
        losses.append(model(ids, pixel_values=images(1), labels=labels, **more).loss)

    step = step_work(shapes_of(model), ROWS, learning)
    assert step.forward.total == close(FLOPS_PER_MAC * macs(forward))
    backward = step.backward.total + (step.recompute if checkpointing else 0)
    # With LoRA the first worn blocks share paths of gradients that the formula counts apart.
    assert backward == pytest.approx(FLOPS_PER_MAC * macs(losses[0].backward), rel=0.01 if learning.lora else 0.001)
    assert step.total(checkpointing=checkpointing) == step.forward.total + backward


@pytest.mark.parametrize("language_model", ["frozen", "full"])
def test_step_with_visual_tokens(language_model: str) -> None:
    text = tiny_llm_config("llama")
    llava: Any = tiny_llava(text).train()
    llava.requires_grad_(language_model == "full")
    llava.model.vision_tower.requires_grad_(False)
    llava.model.multi_modal_projector.requires_grad_(True)
    visual = 16
    ids = torch.cat([torch.full((1, visual), VOCABULARY - 1), token_ids(1, TEXT) % (VOCABULARY - 1)], dim=1)
    losses: list[torch.Tensor] = []

    def forward() -> None:
        losses.append(llava(input_ids=ids, pixel_values=images(1), use_cache=False).logits.sum())

    # transformers computes logits everywhere, visual tokens included.
    rows = Rows(TEXT, TEXT + visual, visual_tokens=visual)
    step = step_work(shapes_of(tiny_model("llama")), rows, Learning(language_model))
    assert step.forward.total == close(FLOPS_PER_MAC * macs(forward))
    assert step.backward.total == close(FLOPS_PER_MAC * macs(losses[0].backward))


def test_packed_rows_with_visual_tokens() -> None:
    model, _ = tiny_baseline()
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    rows = [([-1, *range(first, first + TEXT)], ANSWER) for first in (10, 30, 50)]
    batch = batch_of(model, rows) | {"pixel_values": images(1)}
    losses: list[torch.Tensor] = []
    forward = macs(lambda: losses.append(baseline_loss(model, batch)))

    # The last token of a text is not read: nothing is predicted from it.
    packed = Rows(TEXT - 1, ANSWER, len(rows), visual_tokens=16).packed
    text, vision = model.config.text_config, model.config.vision_config
    sizes = shapes.language_model(text), shapes.encoder(vision)
    step = step_work(Shapes(*sizes, shapes.generator(tiny_generator_config(), *sizes)), packed, Learning())
    assert step.forward.total == close(FLOPS_PER_MAC * forward)
    assert step.backward.total == close(FLOPS_PER_MAC * macs(losses[0].backward))


def test_a_trained_encoder_and_frozen_parts() -> None:
    shapes, _ = read_shapes(None, None, model=None, options=None)
    frozen, seeing = (step_work(shapes, Rows(32, 8), Learning(vision=vision)) for vision in (False, True))
    assert (frozen.backward.encoder, seeing.backward.encoder) == (0, 2 * seeing.forward.encoder)
    assert seeing.backward.bridge == 2 * seeing.forward.bridge > frozen.backward.bridge
    through = step_work(shapes, Rows(32, 8), Learning(vision=True, bridge=False))
    assert through.backward.bridge == through.forward.bridge
    tokens = step_work(shapes, Rows(32, 8, visual_tokens=576), Learning(vision=True, bridge=False))
    assert tokens.backward.bridge == tokens.forward.bridge


def test_nothing_below_the_first_worn_layer_is_recomputed() -> None:
    everywhere, late = (
        read_shapes(None, None, model=None, options={"layers": layers})[0] for layers in ((0, 16), (16,))
    )
    rows = Rows(32, 32)
    first, second = (step_work(shapes, rows, Learning()) for shapes in (everywhere, late))
    assert second.recompute < 0.51 * first.recompute
    assert plain_work(late, rows, Learning()).recompute > 1.9 * second.recompute


def test_lora_parameters() -> None:
    learning = LEARNING["LoRA"]
    model = learner(learning)
    counted = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    sizes = shapes_of(tiny_model("llama"))
    assert lora_parameters(sizes, learning) == counted
    assert lora_parameters(sizes, LEARNING["generator"]) == 0
