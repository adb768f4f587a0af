"""`image_placeholder: mask`: the place of an image in the text is seen by nobody, and keeps its position number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import images, shared_model, tiny_llm_config, tiny_model, token_ids
from vlora.model import VLoRAForConditionalGeneration
from vlora.model.inject import SUPPORTED

IMAGE = 900  # no row of the embedding
NEW = 6
# A sliding window counts places, and those of the tiny models are shorter than the texts here.
UNLIMITED = tuple(family for family in SUPPORTED if not getattr(tiny_llm_config(family), "sliding_window", None))


def _masking(family: str = "llama") -> VLoRAForConditionalGeneration:
    model = tiny_model(family)
    model.config.image_placeholder, model.config.image_token_id = "mask", IMAGE
    return model


def _text(*places: int, length: int = 9, seed: int = 2) -> Tensor:
    ids = token_ids(1, length, seed)
    ids[0, list(places)] = IMAGE
    return ids


def _by_hand(model: VLoRAForConditionalGeneration, ids: Tensor, **given: Any) -> Tensor:
    """Logits of the text without the place, each token at the position number it had with it."""
    keep = ids[0] != IMAGE
    return shared_model(model.config.text_config.model_type)(
        input_ids=ids[:, keep], position_ids=torch.arange(ids.shape[1])[None, keep], **given
    ).logits


@pytest.mark.parametrize("places", [(0,), (4,), (2, 5)])
@pytest.mark.parametrize("family", UNLIMITED)
@torch.no_grad()
def test_the_text_reads_as_if_the_place_were_not_there(family: str, places: tuple[int, ...]) -> None:
    model, ids = _masking(family), _text(*places)
    logits = model(input_ids=ids, pixel_values=images(1)).logits[:, ids[0] != IMAGE]
    torch.testing.assert_close(logits, _by_hand(model, ids, pixel_values=images(1)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_would_matter_if_the_place_were_seen_or_not_counted() -> None:
    model, ids = _masking(), _text(4)
    keep = ids[0] != IMAGE
    logits = model(input_ids=ids, pixel_values=images(1)).logits[:, keep]
    plain = shared_model()
    seen = plain(input_ids=ids.masked_fill(ids == IMAGE, 0), pixel_values=images(1)).logits[:, keep]
    uncounted = plain(input_ids=ids[:, keep], pixel_values=images(1)).logits
    assert (logits - seen)[:, 4:].abs().max() > 0.05
    assert (logits - uncounted)[:, 4:].abs().max() > 0.05


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 3}])
@torch.no_grad()
def test_it_stays_hidden_at_every_step(options: dict[str, Any]) -> None:
    model, pixels = _masking(), images(2)
    texts = [_text(3, length=9), _text(0, length=6, seed=5)]
    ids = torch.cat([texts[0], torch.cat([torch.zeros(1, 3, dtype=torch.long), texts[1]], dim=1)])
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    wishes: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, **options}
    written = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, **wishes)
    assert torch.equal(written[:, :9], ids.masked_fill(ids == IMAGE, 0))
    for row, text in enumerate(texts):
        if "num_beams" in options:
            expected = model.generate(text, pixel_values=pixels[row : row + 1], **wishes)[0, -NEW:]
        else:
            expected = _greedy(model, text, pixels[row : row + 1])
        assert torch.equal(written[row, -NEW:], expected)


def _greedy(model: VLoRAForConditionalGeneration, ids: Tensor, pixels: Tensor) -> Tensor:
    """The prompt is numbered by place; what is written, by how many tokens there are without the places of images."""
    keep = ids[0] != IMAGE
    positions, text = torch.arange(ids.shape[1])[keep], ids[:, keep]
    plain = shared_model(model.config.text_config.model_type)
    for _ in range(NEW):
        logits = plain(input_ids=text, position_ids=positions[None], pixel_values=pixels).logits
        positions = torch.cat([positions, torch.tensor([text.shape[1]])])
        text = torch.cat([text, logits[:, -1:].argmax(-1)], dim=1)
    return text[0, -NEW:]


@torch.no_grad()
def test_a_cache_made_by_hand() -> None:
    from transformers import DynamicCache

    model, ids = _masking(), _text(4)
    cache = DynamicCache()
    weights = model.expand(model.perceive(images(1)))
    first = model(input_ids=ids, perceptual_weights=weights, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(first, model(input_ids=ids, perceptual_weights=weights).logits, rtol=1e-5, atol=1e-5)
