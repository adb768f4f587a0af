"""(d) What is written with a cache, with beams and in several versions equals the computation without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import KINDS, images, padded, plain_llm, shared_model, token_ids
from vlora.model import VLoRAForConditionalGeneration
from vlora.model.inject import SUPPORTED

LENGTHS = (7, 3, 5)
INDEX = torch.tensor([1, -1, 0])
NEW = 7  # with the longest prompt, longer than twice the window of the sliding families


def _texts() -> list[Tensor]:
    return [token_ids(1, length, seed=length)[0] for length in LENGTHS]


def _batch() -> dict[str, Tensor]:
    batch = padded(_texts(), "left")
    batch.pop("position_ids")
    return batch


def _image(index: int, pixels: Tensor) -> Tensor | None:
    return None if index < 0 else pixels[index : index + 1]


def _greedy(model: VLoRAForConditionalGeneration, text: Tensor, pixels: Tensor | None) -> Tensor:
    """A loop of whole forward passes over one text."""
    ids = text[None]
    for _ in range(NEW):
        logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(text) :]


@pytest.mark.parametrize(
    ("family", "cache"),
    [*((family, cache) for family in SUPPORTED for cache in ("dynamic", "static")), ("llama", None)],
)
@torch.no_grad()
def test_greedy(family: str, cache: str | None) -> None:
    model, pixels = shared_model(family), images(2)
    options: dict[str, Any] = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    written = model.generate(
        **_batch(), pixel_values=pixels, image_index=INDEX, max_new_tokens=NEW, do_sample=False, **options
    )[:, max(LENGTHS) :]
    for row, (text, index) in enumerate(zip(_texts(), INDEX.tolist(), strict=True)):
        assert torch.equal(written[row], _greedy(model, text, _image(index, pixels)))


@pytest.mark.parametrize("options", KINDS[1:], ids=str)
@torch.no_grad()
def test_greedy_and_beams_for_every_kind_of_generator(options: dict[str, Any]) -> None:
    model, pixels = shared_model(**options), images(2)
    wishes: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    seen = model.generate(**_batch(), pixel_values=pixels, image_index=INDEX, **wishes)[:, max(LENGTHS) :]
    beams = model.generate(**_batch(), pixel_values=pixels, image_index=INDEX, num_beams=3, **wishes)
    for row, (text, index) in enumerate(zip(_texts(), INDEX.tolist(), strict=True)):
        assert torch.equal(seen[row], _greedy(model, text, _image(index, pixels)))
        alone = model.generate(text[None], pixel_values=_image(index, pixels), num_beams=3, **wishes)
        assert torch.equal(beams[row, max(LENGTHS) :], alone[0, len(text) :])


@torch.no_grad()
def test_the_image_is_worn_at_every_step() -> None:
    """Logits of every step, not only the choice made from them; and each step is changed by the image."""
    model, pixels = shared_model(), images(1)
    prompt = token_ids(1, 6)
    options: dict[str, Any] = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(prompt, pixel_values=pixels, max_new_tokens=NEW, **options)
    stepwise = torch.stack(out.logits, dim=1)
    whole = model(input_ids=out.sequences, pixel_values=pixels).logits[:, 5:-1]
    bare = model(input_ids=out.sequences).logits[:, 5:-1]
    torch.testing.assert_close(stepwise, whole, rtol=1e-4, atol=1e-4)
    assert (stepwise - bare).abs().amax((0, 2)).gt(0.1).all()


@torch.no_grad()
def test_bare_rows_write_what_the_plain_model_writes() -> None:
    model = shared_model()
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    seen = model.generate(**_batch(), pixel_values=images(2), image_index=INDEX, **options)
    assert torch.equal(seen[1], plain_llm(model).generate(**_batch(), **options)[1])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@torch.no_grad()
def test_beams(family: str) -> None:
    model, pixels = shared_model(family), images(2)
    options: dict[str, Any] = {"max_new_tokens": NEW, "num_beams": 3, "do_sample": False}
    cached = model.generate(**_batch(), pixel_values=pixels, image_index=INDEX, **options)
    uncached = model.generate(**_batch(), pixel_values=pixels, image_index=INDEX, use_cache=False, **options)
    assert torch.equal(cached, uncached)
    for row, (text, index) in enumerate(zip(_texts(), INDEX.tolist(), strict=True)):
        alone = model.generate(text[None], pixel_values=_image(index, pixels), **options)
        assert torch.equal(cached[row, max(LENGTHS) :], alone[0, len(text) :])
    plain = plain_llm(model).generate(**_batch(), **options)
    assert torch.equal(cached[1], plain[1])


@torch.no_grad()
def test_beams_of_consecutive_rows_that_share_an_image() -> None:
    model, pixels, ids = shared_model(), images(2), token_ids(4, 6)
    options: dict[str, Any] = {"max_new_tokens": NEW, "num_beams": 3, "do_sample": False}
    shared = model.generate(ids, pixel_values=pixels, **options)
    for row in range(4):
        alone = model.generate(ids[row : row + 1], pixel_values=pixels[row // 2 : row // 2 + 1], **options)
        assert torch.equal(shared[row : row + 1], alone)


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"cache_implementation": "static"}])
@torch.no_grad()
def test_several_sampled_sequences_per_row(options: dict[str, Any]) -> None:
    model, pixels, ids = shared_model(), images(2), token_ids(4, 6)
    torch.manual_seed(3)
    out = model.generate(
        ids,
        pixel_values=pixels,
        max_new_tokens=NEW,
        do_sample=True,
        top_k=0,
        num_return_sequences=4,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    assert out.sequences.shape == (16, 6 + NEW)
    assert len({tuple(sequence) for sequence in out.sequences.tolist()}) == 16
    if "num_beams" in options:  # the logits of a step are those of the beams as they were then
        written = _log_probability(model, out.sequences[:, :-1], out.sequences[:, 6:], pixels)
        total = written.sum(1) / NEW
        torch.testing.assert_close(total, out.sequences_scores, rtol=1e-4, atol=1e-4)
        return
    stepwise = torch.stack(out.logits, dim=1)  # [sequences, new, vocabulary]
    for row in range(16):
        image = row // 8  # 4 sequences of each of 2 consecutive rows
        whole = model(input_ids=out.sequences[row : row + 1, :-1], pixel_values=pixels[image : image + 1]).logits
        torch.testing.assert_close(stepwise[row], whole[0, 5:], rtol=1e-4, atol=1e-4)


def _log_probability(model: VLoRAForConditionalGeneration, read: Tensor, written: Tensor, pixels: Tensor) -> Tensor:
    """Log-probability of each new token, every sequence on its own and under the right image."""
    parts = [
        model(input_ids=read[row : row + 1], pixel_values=pixels[row // 8 : row // 8 + 1]).logits[0, 5:]
        for row in range(len(read))
    ]
    return torch.stack(parts).log_softmax(-1).gather(-1, written[..., None])[..., 0]


@pytest.mark.parametrize("form", ["object", "tensor"])
@torch.no_grad()
def test_ready_made_weights_write_the_same(form: str) -> None:
    model, pixels, ids = shared_model(), images(2), token_ids(2, 6)
    weights = model.expand(model.perceive(pixels))
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "num_beams": 2}
    expected = model.generate(ids, pixel_values=pixels, **options)
    given = weights if form == "object" else weights.values
    assert torch.equal(model.generate(ids, perceptual_weights=given, **options), expected)


@torch.no_grad()
def test_a_continued_cache_keeps_the_image() -> None:
    """Prefill in two pieces, then a token: the same logits as in one piece."""
    model, ids = shared_model(), token_ids(2, 9)
    weights = model.expand(model.perceive(images(2)))
    whole = model(input_ids=ids, perceptual_weights=weights).logits
    cache, pieces = None, []
    for piece in ids.split([5, 3, 1], dim=1):
        out = model(input_ids=piece, perceptual_weights=weights, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-4)
