"""LoRA of PEFT on the language model, while the generator trains: both add to the same linear layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from tests.ecosystem.people import CHATS, LLM, NEW, alone, chat, greedy_by_hand, prepare
from vlora.model.inject import MODULE_OF

peft = pytest.importorskip("peft")

ROWS = [chat("what is this", 1, answer="a thing"), chat("is it", 2, 3, answer="this"), chat("what", answer="colour")]


def _adapted(model: Any, **options: Any) -> Any:
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=LLM, modules_to_save=["generator"], **options)
    return peft.get_peft_model(model, config)


def _batch(processor: Any) -> dict[str, Tensor]:
    batch = prepare(processor, ROWS, generate=False)
    return dict(batch) | {"labels": batch["input_ids"].where(batch["attention_mask"].bool(), -100)}


def _train(model: Any, batch: dict[str, Tensor], steps: int = 8) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses: list[float] = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_a_fresh_adapter_changes_nothing(folder: Path, model: Any, processor: Any, task: str | None) -> None:
    adapted = _adapted(AutoModelForImageTextToText.from_pretrained(folder), task_type=task).eval()
    batch = prepare(processor, CHATS)
    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).logits, model(**batch).logits)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    assert torch.equal(adapted.generate(**batch, **options), model.generate(**batch, **options))


def test_both_learn_and_nothing_else_does(folder: Path, model: Any, processor: Any, tmp_path: Path) -> None:
    adapted, batch = _adapted(AutoModelForImageTextToText.from_pretrained(folder)), _batch(processor)
    adapted(**batch).loss.backward()
    for name, parameter in adapted.named_parameters():
        trained = "lora_" in name or "modules_to_save" in name
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) == trained, name
    adapted.zero_grad()

    losses = _train(adapted, batch)
    assert losses[-1] < 0.9 * losses[0]
    state, before = adapted.state_dict(), model.state_dict()
    language = [name for name in state if "language_model" in name and "lora_" not in name]
    assert language
    for name in language:
        assert torch.equal(state[name], before[name.removeprefix("base_model.model.").replace(".base_layer", "")])
    kept = adapted.base_model.model.model.generator.modules_to_save["default"].state_dict()
    assert all(not torch.equal(kept[f"b.{name}"], b) for name, b in model.model.generator.b.items())

    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(folder), tmp_path)
    prompt = prepare(processor, CHATS)
    with torch.no_grad():
        logits = adapted.eval()(**prompt).logits
        assert torch.equal(again.eval()(**prompt).logits, logits)
        assert not torch.allclose(model(**prompt).logits, logits, atol=0.01)

    plain = adapted.merge_and_unload()
    assert type(plain) is type(model)
    assert type(plain.model.generator) is type(model.model.generator)
    with torch.no_grad():
        torch.testing.assert_close(plain(**prompt).logits, logits, rtol=1e-3, atol=1e-3)
    for one in CHATS:
        assert torch.equal(alone(plain, processor, one, do_sample=False)[0], greedy_by_hand(plain, processor, one))


@torch.no_grad()
def test_each_linear_layer_gets_both_updates_once(folder: Path, processor: Any) -> None:
    """y = W x + lora(x) + scale (x A) B, before and after merging; checked at every linear place."""
    adapted = _adapted(AutoModelForImageTextToText.from_pretrained(folder), init_lora_weights=False).eval()
    inner = adapted.base_model.model
    batch = prepare(processor, [CHATS[0]])
    weights = inner.model.perceptual_weights(batch["pixel_values"], batch["image_index"], 1)
    for stage in ("wrapped", "merged", "unloaded"):
        if stage == "merged":
            adapted.merge_adapter()
        elif stage == "unloaded":
            inner = adapted.merge_and_unload()
        checked = 0
        for layer, target in weights.layout.place_of:
            if target == "mlp":
                continue
            linear = inner.model.language_model.layers[layer].get_submodule(MODULE_OF[target])
            x, y = _seen(inner, linear, batch)
            delta = weights.delta(layer, target)[0]
            torch.testing.assert_close(y, _without_hooks(linear, x) + x @ delta, rtol=1e-4, atol=1e-4)
            assert (x @ delta).abs().mean() > 0.01
            checked += 1
        assert checked == 6


def _seen(model: Any, linear: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """What goes into a layer, and what comes out."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = linear.register_forward_hook(lambda _module, args, out: seen.append((args[0], out)))
    model(**batch)
    handle.remove()
    ((x, y),) = seen
    return x, y


def _without_hooks(linear: Any, x: Tensor) -> Tensor:
    """The layer's own update: the base matrix, and the adapter if it is not merged."""
    base = getattr(linear, "base_layer", linear)
    y = nn.functional.linear(x, base.weight, base.bias)
    if base is not linear and not linear.merged:
        y = y + linear.scaling["default"] * linear.lora_B["default"](linear.lora_A["default"](x))
    return y


def test_a_generator_that_is_left_as_it_is_can_learn_too(folder: Path, processor: Any) -> None:
    """Without `modules_to_save`: PEFT freezes what it does not wrap, and one line thaws it."""
    adapted = peft.get_peft_model(
        AutoModelForImageTextToText.from_pretrained(folder), peft.LoraConfig(r=3, target_modules=LLM)
    )
    adapted.base_model.model.model.generator.requires_grad_(True)
    batch = _batch(processor)
    adapted(**batch).loss.backward()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if "lora_B" in name or "generator.b." in name}
    assert gradients
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
