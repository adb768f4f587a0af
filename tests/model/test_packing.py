"""Texts about one image, read in one row, are what they are in rows of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compare.tiny import batch_of, tiny_baseline
from tests.helpers import images, tiny_model
from vlora.compare import llava
from vlora.compare.baseline import baseline_loss
from vlora.model import modeling
from vlora.model.inject import SUPPORTED
from vlora.model.loss import IGNORED
from vlora.model.packing import Packing, packing_of

# Two images, three texts of different lengths about each.
TEXTS = [
    ([5, -1, 20, 21, 22], 2),
    ([5, -1, 30, 31], 1),
    ([5, -1, 40, 41, 42, 43, 44], 3),
    ([5, -1, 50, 51, 52], 2),
    ([5, -1, 60, 61, 62, 63], 1),
    ([5, -1, 70, 71], 1),
]


def without_images(texts: list[tuple[list[int], int]]) -> list[tuple[list[int], int]]:
    return [([token for token in ids if token >= 0], supervised) for ids, supervised in texts]


def weights_model(family: str) -> tuple[Any, dict[str, Tensor], Callable[[Any, dict[str, Tensor]], Tensor]]:
    model = tiny_model(family)
    baseline, _ = tiny_baseline()
    batch = batch_of(baseline, without_images(TEXTS))
    return model, batch, lambda model, batch: model(**batch, supervised_only=True, use_cache=False).loss


def tokens_model(family: str) -> tuple[Any, dict[str, Tensor], Callable[[Any, dict[str, Tensor]], Tensor]]:
    model, _ = tiny_baseline(family)
    return model, batch_of(model, TEXTS), baseline_loss


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("made", "family"),
    [*[(weights_model, family) for family in SUPPORTED], (tokens_model, "llama"), (tokens_model, "qwen3")],
)
def test_loss_and_gradients_are_those_of_rows_of_their_own(
    made: Callable[[str], Any], family: str, attention: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("transformers has eager attention only for it")
    model, batch, loss_of = made(family)
    model.model.language_model.set_attn_implementation(attention)
    batch |= {"pixel_values": images(2), "loss_weights": torch.tensor([0.3, 0.1, 0.2, 0.1, 0.1, 0.2])}
    model, batch = model.to(device), {name: tensor.to(device) for name, tensor in batch.items()}
    rows: list[int] = []
    model.model.language_model.layers[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))

    def gradients() -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        learning = [*model.model.parameters()]
        return loss.detach(), [one.grad.clone() for one in learning if one.grad is not None]

    together = gradients()
    for module in (llava, modeling):
        monkeypatch.setattr(module, "packing_of", lambda *_args, **_kwargs: None)
    apart = gradients()
    assert rows == [2, 6]
    assert together[1]
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def packed(texts: list[tuple[list[int], int]], count: int, side: str = "right") -> Packing | None:
    model, _ = tiny_baseline()
    batch = batch_of(model, texts, side=side)
    config = model.model.language_model.config
    return packing_of(config, batch["input_ids"], batch["attention_mask"], batch["labels"], images=count)


def test_where_each_token_lies() -> None:
    found = packed(without_images(TEXTS), 2)
    assert found is not None
    ids = batch_of(tiny_baseline()[0], without_images(TEXTS))["input_ids"]
    rows = found.pack(ids)
    # The last token of a text predicts nothing, and is not read.
    assert rows.tolist() == [[5, 20, 21, 30, 40, 41, 42, 43], [5, 50, 51, 60, 61, 62, 70, rows[1, 7]]]
    assert found.segment.tolist() == [[0, 1, 1, 2, 3, 3, 3, 3], [0, 1, 1, 2, 2, 2, 3, -1]]
    assert found.position_ids[0].tolist() == [0, 1, 2, 1, 1, 2, 3, 4]
    again = found.unpack(rows)
    for row, (tokens, _) in enumerate(without_images(TEXTS)):
        assert again[row, : len(tokens) - 1].tolist() == tokens[:-1]


def test_a_text_that_teaches_nothing_is_not_read() -> None:
    texts = [([5, 20, 21, 22], 1), ([5, 30, 31, 32], 0), ([5, 40, 41, 42], 1)]
    found = packed(texts, 1)
    assert found is not None
    assert found.segment.tolist() == [[0, 1, 1, 3, 3]]


def test_what_is_not_read_together() -> None:
    assert packed([([5, 20], 0), ([6, 20, 21], 0)], 1) is None  # nothing is read at all
    assert packed(TEXTS, 2) is not None
    assert packed(TEXTS, 6) is None  # a text each
    assert packed(TEXTS, 4) is None  # not as many for each
    assert packed(TEXTS, 0) is None
    assert packed(TEXTS, 2, side="left") is None
    alike = [([token, 20, 21, 22], 1) for token in (5, 6)]  # nothing in common, no padding, and the last is read
    assert packed([(ids + [23] * 40, 1) for ids, _ in alike], 1) is None


def test_a_window_that_is_shorter_than_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_baseline("mistral")
    batch = batch_of(model, TEXTS)
    config = model.model.language_model.config
    given = (config, batch["input_ids"], batch["attention_mask"], batch["labels"])
    for window, fits in ((None, True), (batch["labels"].shape[1], True), (batch["labels"].shape[1] - 1, False)):
        monkeypatch.setattr(config, "sliding_window", window)
        assert (packing_of(*given, images=2) is not None) == fits
    monkeypatch.setattr(config, "_attn_implementation", "flash_attention_2")
    assert packing_of(*given, images=2) is None
    assert bool((batch["labels"] == IGNORED).any())
