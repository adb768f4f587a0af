"""The memory of a step, against the tensors that autograd keeps when the step is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from tests.cost.test_formulas import shapes_of
from vlora.cost import formulas, memory
from vlora.cost.bill import read_shapes
from vlora.cost.memory import BUCKET, MIXED, SINGLE, Precision, numbers_of, step_memory
from vlora.cost.training import Learning, Rows
from vlora.model import GeneratorConfig, VLoRAConfig, VLoRAForConditionalGeneration

IMAGES, TOKENS = 2, 37  # a product that no weight has a side of
FORMS = {"frozen": Learning(), "full": Learning("full")}


def build(*, kv_heads: int = 8, **generator: Any) -> Any:
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=96,
        patch_size=8,
    )
    text = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
        vocab_size=500,
    )
    options: dict[str, Any] = {
        "dim": 128,
        "depth": 2,
        "heads": 4,
        "rank": 16,
        "alpha": 16,
        "layers": (1, 3),
    } | generator
    config = VLoRAConfig(vision_config=vision, text_config=text, generator_config=GeneratorConfig(**options))
    return VLoRAForConditionalGeneration(config).train()


def kept(model: Any, learning: Learning, precision: Precision) -> tuple[int, int]:
    """Bytes that autograd keeps of the generator, and of the decoder; weights and their casts left out."""
    model.requires_grad_(learning.full)
    model.model.vision_tower.requires_grad_(False)
    model.model.generator.requires_grad_(True)
    if precision.mixed and not learning.full:
        model.model.language_model.to(torch.bfloat16)
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own and tuple(tensor.shape) not in shapes:
            seen[address] = tensor  # kept alive, so that its address is not used again
        return tensor

    def weight() -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())

    ids = torch.randint(3, 500, (IMAGES, TOKENS))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision.mixed),
    ):
        weights = model.model.perceptual_weights(torch.randn(IMAGES, 3, 96, 96), None, IMAGES)
        generator = weight()
        model.model(input_ids=ids, perceptual_weights=weights, use_cache=False)
    return generator, weight() - generator


@pytest.mark.parametrize("precision", [MIXED, SINGLE], ids=["mixed", "single"])
@pytest.mark.parametrize("learning", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("kind", [{}, {"layers": (0,), "targets": ("v", "o")}, {"queries": "joint"}])
def test_activations(precision: Precision, learning: Learning, kind: dict[str, Any]) -> None:
    model = build(**kind)
    shapes, rows = shapes_of(model), Rows(TOKENS, TOKENS)
    generator, decoder = kept(model, learning, precision)
    counted = step_memory(shapes, rows, learning, micro_batch=IMAGES, checkpointing=False, precision=precision)
    assert counted.bridge == pytest.approx(generator, rel=0.05)
    # A itself is kept for the gradient of x; its own gradient comes later.
    assert counted.language_model + counted.factors / 2 == pytest.approx(decoder, rel=0.05)


def test_factors_are_those_of_the_bill() -> None:
    shapes, _ = read_shapes(None, None, model=None, options=None)
    peak = step_memory(shapes, Rows(32, 32), Learning(), micro_batch=96, checkpointing=False)
    assert peak.factors == 96 * 2 * formulas.perceptual_weights_bytes(shapes.generator, 2)
    tokens = step_memory(shapes, Rows(32, 32, 1, 576), Learning(), micro_batch=96, checkpointing=False)
    assert tokens.factors == 0


@pytest.mark.parametrize("learning", FORMS.values(), ids=FORMS.keys())
def test_states(learning: Learning) -> None:
    """Sixteen bytes for each number that learns, two for each that does not, whoever holds them."""
    shapes, _ = read_shapes(None, None, model=None, options=None)
    rows = Rows(32, 32)
    numbers = numbers_of(shapes, rows, learning)
    learns = numbers.trained(learning)
    frozen = numbers.total - learns

    def peak(strategy: str, devices: int) -> memory.Memory:
        return step_memory(
            shapes, rows, learning, micro_batch=1, checkpointing=False, strategy=strategy, devices=devices
        )

    alone = peak("ddp", 1)
    assert alone.frozen + alone.trained + alone.gradients + alone.optimizer == 2 * frozen + 16 * learns
    assert (alone.copies, alone.buckets) == (2 * learns, 0)
    assert peak("ddp", 8).states == alone.states + 4 * learns
    assert peak("fsdp", 1).states == alone.states
    sharded = peak("fsdp", 8)
    held = sharded.frozen + sharded.trained + sharded.gradients + sharded.optimizer
    assert held == pytest.approx((2 * frozen + 16 * learns) / 8, rel=1e-6)
    zero = peak("zero2", 8)
    assert zero.trained == 2 * learns
    assert zero.gradients + zero.optimizer == pytest.approx(14 * learns / 8, rel=1e-6)
    assert zero.buckets == 4 * min(learns, BUCKET)


def test_checkpointing_keeps_the_inputs_of_blocks() -> None:
    shapes, _ = read_shapes(None, None, model=None, options=None)
    rows = Rows(256, 256)
    whole, thin = (step_memory(shapes, rows, Learning("full"), micro_batch=4, checkpointing=on) for on in (False, True))
    assert thin.language_model < 0.1 * whole.language_model
    assert thin.language_model > 4 * 256 * 32 * 4096 * 2
    assert {name for name in thin.to_dict() if thin.to_dict()[name] != whole.to_dict()[name]} == {
        "language_model",
        "total",
    }


def test_the_peak_counts_looking_only_while_it_is_larger() -> None:
    shapes, _ = read_shapes(None, None, model=None, options=None)
    short = step_memory(shapes, Rows(1, 1), Learning("lora", bridge=False), micro_batch=8, checkpointing=True)
    assert short.activations < short.looking
    assert short.total == short.states + short.runtime + short.looking
