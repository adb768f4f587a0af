"""A training step of LLaVA: equal to transformers' own forward, row by row, and with one look at each image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.compare.tiny import batch_of, tiny_baseline
from tests.helpers import checkpoint_gradients, images
from vlora.compare.baseline import baseline_loss
from vlora.compare.llava import LlavaForConditionalGeneration
from vlora.errors import InputError
from vlora.model.loss import IGNORED

# Texts with -1 for an image, how many of their last tokens are supervised, and the images they look at.
TEXTS: list[tuple[list[int], int, list[int]]] = [
    ([5, -1, 20, 21, 22], 2, [1]),
    ([-1, 6, 7, -1, 30], 1, [0, 2]),  # two images, each at its place
    ([8, 9, 40, 41, 42, 43], 3, []),  # none
    ([-1, 50, 51, 52], 2, [1]),  # again the first one's
    ([7, -1, 60, 61], 0, [2]),  # nothing to learn
]


def mixed_batch(model: LlavaForConditionalGeneration, side: str = "right") -> dict[str, Tensor]:
    width = max(len(own) for *_, own in TEXTS)
    return batch_of(model, [(text, supervised) for text, supervised, _ in TEXTS], side=side) | {
        "pixel_values": images(3),
        "image_index": torch.tensor([[*own, *[-1] * (width - len(own))] for *_, own in TEXTS]),
    }


def slow_losses(model: LlavaForConditionalGeneration, batch: dict[str, Tensor]) -> list[Tensor]:
    """Each row on its own, through transformers' forward, with logits of all positions."""
    losses = []
    for row, (*_, own) in enumerate(TEXTS):
        kept = batch["attention_mask"][row].bool()
        ids, labels = batch["input_ids"][row, kept][None], batch["labels"][row, kept]
        pixels = batch["pixel_values"][own] if own else None
        parent: Any = super(LlavaForConditionalGeneration, model)
        logits = parent.forward(input_ids=ids, pixel_values=pixels).logits[0, :-1]
        if (labels != IGNORED).any():
            losses.append(F.cross_entropy(logits, labels[1:], ignore_index=IGNORED))
        else:
            losses.append(logits.new_zeros(()))
    return losses


@pytest.mark.parametrize("vision", ["clip", "efficientnet"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gemma3_text", "smollm3"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_equal_to_transformers(family: str, vision: str, side: str) -> None:
    model, _ = tiny_baseline(family, vision)
    batch = mixed_batch(model, side)
    expected = torch.stack(slow_losses(model, batch))
    torch.testing.assert_close(baseline_loss(model, batch), expected.sum() / 4, atol=1e-5, rtol=1e-5)
    weights = torch.tensor([0.5, 0.1, 0.2, 0.0, 3.0])
    weighted = baseline_loss(model, batch | {"loss_weights": weights})
    torch.testing.assert_close(weighted, (expected * weights).sum(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vision", ["clip", "efficientnet"])
def test_equal_gradients(vision: str) -> None:
    model, _ = tiny_baseline(vision=vision)
    batch = mixed_batch(model)
    gradients: list[dict[str, Tensor]] = []
    for loss in (baseline_loss(model, batch), torch.stack(slow_losses(model, batch)).sum() / 4):
        model.zero_grad()
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.startswith("model.multi_modal_projector") for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant: bool) -> None:
    """With the language model frozen, as in stage one."""
    found = []
    for checkpointing in (False, True):
        model, _ = tiny_baseline()
        model.requires_grad_(False).train()
        model.model.multi_modal_projector.requires_grad_(True)
        if checkpointing:
            checkpoint_gradients(model, reentrant=reentrant)
        baseline_loss(model, mixed_batch(model)).backward()
        found.append([parameter.grad for parameter in model.model.multi_modal_projector.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-5)


def test_one_look_serves_all_rows_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_baseline()
    looks: list[int] = []
    model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, named: looks.append(len(named["pixel_values"])), with_kwargs=True
    )
    texts = [([-1, 5 + row, 20, 21], 2) for row in range(6)]
    batch = batch_of(model, texts) | {"pixel_values": images(2)}
    loss = baseline_loss(model, batch)
    assert looks == [2]
    index = torch.tensor([0, 0, 0, 1, 1, 1])
    assert torch.equal(loss, baseline_loss(model, batch | {"image_index": index}))
    repeated = baseline_loss(model, batch | {"pixel_values": images(2)[index]})
    torch.testing.assert_close(loss, repeated, atol=1e-6, rtol=1e-6)


def test_logits_of_supervised_positions_only() -> None:
    model, _ = tiny_baseline()
    outputs = model(**mixed_batch(model), supervised_only=True)
    assert outputs.logits.shape == (2 + 1 + 3 + 2, model.config.text_config.vocab_size)


def test_a_batch_without_images_is_plain_text() -> None:
    """And gives the projector a gradient of zero, which other processes wait for."""
    model, _ = tiny_baseline()
    model.requires_grad_(False).train()
    model.model.multi_modal_projector.requires_grad_(True)
    batch = batch_of(model, [([8, 9, 40, 41], 2), ([8, 9, 40], 1)])
    loss = baseline_loss(model, batch)
    loss.backward()
    assert all(not p.grad.any() for p in model.model.multi_modal_projector.parameters())
    hidden = model.model.language_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    logits = model.lm_head(hidden)[:, :-1]
    rows = [F.cross_entropy(logits[row], batch["labels"][row, 1:]) for row in range(2)]
    torch.testing.assert_close(loss, sum(rows) / 2, atol=1e-5, rtol=1e-5)
    empty = batch | {"pixel_values": images(0), "image_index": torch.full((2, 1), -1)}
    assert torch.equal(baseline_loss(model, empty), loss)


def test_a_text_that_was_cut_may_name_fewer_images() -> None:
    model, _ = tiny_baseline()
    batch = batch_of(model, [([-1, 5, 20], 1)]) | {"pixel_values": images(2)}
    assert torch.equal(
        baseline_loss(model, batch | {"image_index": torch.tensor([[1, 0]])}),
        baseline_loss(model, batch | {"image_index": torch.tensor([[1, -1]])}),
    )


@pytest.mark.parametrize("vision", [torch.float32, torch.bfloat16])
def test_half_precision_beside_whole(vision: torch.dtype) -> None:
    """A frozen language model in bfloat16, the encoder too where it is fast, the projector in float32."""
    model, _ = tiny_baseline()
    model.model.vision_tower.to(vision)
    model.model.language_model.to(torch.bfloat16)
    model.lm_head.to(torch.bfloat16)
    whole, _ = tiny_baseline()
    batch = mixed_batch(model)
    loss = baseline_loss(model, batch)
    loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, baseline_loss(whole, batch), atol=0.05, rtol=0.02)  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pixel_values": None}, "Row 0 of the batch has 16 places for visual tokens and 0 images of 16: give a text"),
        ({"image_index": torch.tensor([-1, 0, 1])}, "Row 0 of the batch has 16 places for visual tokens and 0 images"),
        ({"image_index": torch.tensor([0, 1, 2])}, "names images from 0 to 2; there are 2"),
        ({"image_index": torch.tensor([0, 1])}, r"must have the shape \[3\] or \[3, images\].* got \(2,\)"),
        ({}, "2 images cannot be shared out evenly to 3 rows"),
        ({"pixel_values": torch.randn(3, 3, 16, 16)}, "of .16, 16. pixels make 4 visual tokens, .* has 16 places"),
        ({"labels": None}, "needs input_ids and labels"),
    ],
)
def test_what_does_not_fit_is_told(change: dict[str, Any], problem: str) -> None:
    model, _ = tiny_baseline()
    if "16, 16" in problem:
        model.model.vision_tower.embeddings.position_embedding = torch.nn.Embedding(5, 32)
        model.model.vision_tower.embeddings.position_ids = torch.arange(5)[None]
        model.model.vision_tower.embeddings.image_size = 16
    batch = batch_of(model, [([-1, 5, 20], 1)] * 3) | {"pixel_values": images(2)}
    with pytest.raises(InputError, match=problem):
        baseline_loss(model, batch | change)


def test_places_of_a_part_of_an_image() -> None:
    model, _ = tiny_baseline()
    batch = batch_of(model, [([-1, 5, 20], 1)]) | {"pixel_values": images(1)}
    batch["input_ids"][0, 0] = 5
    with pytest.raises(InputError, match="has 15 places for visual tokens and 1 images of 16"):
        baseline_loss(model, batch)
