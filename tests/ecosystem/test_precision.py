"""The language model in half precision or in 8 bits; the generator, which feeds every layer, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, TorchAoConfig

from tests.ecosystem.people import CHATS, NEW, greedy_by_hand, prepare

HALVES = [torch.bfloat16, torch.float16]
# Mean distance to the float32 logits over their spread. The tiny model is more sensitive than a trained one: its
# weights are large, so that its images matter.
TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.int8: 0.05}


def _dtypes(model: Any) -> dict[str, set[torch.dtype]]:
    parts = {"vision": model.model.vision_tower, "language": model.model.language_model}
    parts |= {"generator": model.model.generator, "head": model.lm_head}
    return {name: {parameter.dtype for parameter in part.parameters()} for name, part in parts.items()}


def _distance(logits: Tensor, exact: Tensor, mask: Tensor) -> float:
    logits, exact = logits.float()[mask.bool()], exact[mask.bool()]
    return float((logits - exact).abs().mean() / exact.std())


def _check(model: Any, reference: Any, processor: Any, tolerance: float) -> None:
    """Close to float32, blind without the image, and the same with a cache as without."""
    batch = prepare(processor, CHATS)
    with torch.no_grad():
        exact = reference(**batch).logits
        assert _distance(model(**batch).logits, exact, batch["attention_mask"]) < tolerance
        other = dict(batch) | {"pixel_values": batch["pixel_values"].flip(0)}
        assert _distance(model(**other).logits, exact, batch["attention_mask"]) > 3 * tolerance


@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_precision_model_keeps_its_generator_in_float32(
    folder: Path, model: Any, processor: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    half = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    assert _dtypes(half) == {"vision": {dtype}, "language": {dtype}, "generator": {torch.float32}, "head": {dtype}}
    assert half.dtype == dtype
    generator = half.model.generator.state_dict()
    assert all(torch.equal(tensor, generator[name]) for name, tensor in model.model.generator.state_dict().items())
    _check(half, model, processor, TOLERANCE[dtype])

    half.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)  # in the precision it was saved in
    assert _dtypes(again) == _dtypes(half)
    batch = prepare(processor, CHATS)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    assert torch.equal(again.generate(**batch, **options), half.generate(**batch, **options))


@pytest.mark.parametrize("dtype", HALVES)
def test_all_of_it_in_half_precision_works_too(model: Any, folder: Path, processor: Any, dtype: torch.dtype) -> None:
    half = AutoModelForImageTextToText.from_pretrained(folder).to(dtype)
    assert set().union(*_dtypes(half).values()) == {dtype}
    _check(half, model, processor, TOLERANCE[dtype])


# ---- 8 bits -----------------------------------------------------------------------------------------


def _quantised(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if "Int8" in type(getattr(module, "weight", None)).__name__}


def _linears(model: nn.Module, *parts: str) -> set[str]:
    return {n for n, module in model.named_modules() if isinstance(module, nn.Linear) and n.startswith(parts)}


@pytest.mark.parametrize("spared", [None, ["model.vision_tower", "lm_head"]])
def test_quantised_while_loading(folder: Path, model: Any, processor: Any, spared: list[str] | None) -> None:
    """The generator is spared without being named; so is the head, unless a list says what is to be spared."""
    from torchao.quantization import Int8WeightOnlyConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=spared)
    small = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)
    parts = ("model.language_model",) if spared else ("model.language_model", "model.vision_tower")
    assert _quantised(small) == _linears(model, *parts)
    assert _dtypes(small)["generator"] == {torch.float32}
    _check(small, model, processor, TOLERANCE[torch.int8])
    batch = prepare(processor, CHATS)
    written = small.generate(**batch, max_new_tokens=NEW, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for row, one in enumerate(CHATS):
        assert torch.equal(written[row], greedy_by_hand(small, processor, one))


def test_quantised_afterwards(folder: Path, model: Any, processor: Any) -> None:
    """An assembled model: any tool that treats the linear layers of `model.model.language_model`."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    small = AutoModelForImageTextToText.from_pretrained(folder)
    quantize_(small.model.language_model, Int8WeightOnlyConfig())
    assert _quantised(small) == _linears(model, "model.language_model")
    _check(small, model, processor, TOLERANCE[torch.int8])


def test_the_generator_of_a_quantised_model_learns(folder: Path, processor: Any) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    small = AutoModelForImageTextToText.from_pretrained(folder)
    small.requires_grad_(False)
    quantize_(small.model.language_model, Int8WeightOnlyConfig())
    small.model.generator.requires_grad_(True)
    batch = prepare(processor, CHATS)
    small.train()(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in small.model.generator.parameters())
    assert all(b.grad.any() for b in small.model.generator.b.values())
