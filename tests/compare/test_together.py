"""Texts about one image, read in one row, are what they are in rows of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compare.tiny import batch_of, tiny_baseline
from tests.helpers import images
from vlora.compare import llava
from vlora.compare.baseline import baseline_loss
from vlora.compare.together import shared_prefix

# Two images, three texts of different lengths about each.
TEXTS = [
    ([5, -1, 20, 21, 22], 2),
    ([5, -1, 30, 31], 1),
    ([5, -1, 40, 41, 42, 43, 44], 3),
    ([5, -1, 50, 51, 52], 2),
    ([5, -1, 60, 61, 62, 63], 1),
    ([5, -1, 70, 71], 1),
]


def gradients(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    loss = baseline_loss(model, batch)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.model.multi_modal_projector.parameters()]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_loss_and_gradients_are_those_of_rows_of_their_own(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny_baseline(family)
    model.model.language_model.set_attn_implementation(attention)
    batch = batch_of(model, TEXTS) | {"pixel_values": images(2)}
    rows: list[int] = []
    model.model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    together = gradients(model, batch)
    monkeypatch.setattr(llava, "shared_prefix", lambda *_args, **_kwargs: 0)
    apart = gradients(model, batch)
    assert rows == [2, 6]
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_read_together() -> None:
    model, _ = tiny_baseline()

    def prefix(texts: list[tuple[list[int], int]], count: int) -> int:
        batch = batch_of(model, texts)
        return shared_prefix(model.model, batch["input_ids"], batch["attention_mask"], batch["labels"], images=count)

    places = model.config.image_seq_length
    assert prefix(TEXTS, 2) == 1 + places
    assert prefix(TEXTS, 6) == 0  # a text each: nothing to share
    assert prefix([([5, -1, 20], 1), ([6, -1, 20], 1)], 1) == 0  # they begin otherwise
    assert prefix([([5, -1, 20], 1), ([5, 20, -1, 21], 1)], 1) == 0  # the image is elsewhere
    assert prefix([([5, -1, 20], 1), ([5, 21, 22], 1)], 1) == 0  # one has none
    assert prefix([([5, -1, 20], 1), ([5, -1, 21], 1)], 1) == 0  # learnt right after the image
