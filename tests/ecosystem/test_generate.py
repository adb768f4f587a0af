"""`generate`, in every way it is used; each against whole forward passes by hand, or against the row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, StaticCache

from tests.ecosystem.people import CHATS, NEW, alone, chat, greedy_by_hand, prepare, save_folder
from tests.helpers import plain_llm


def _written(model: Any, batch: Any, **options: Any) -> torch.Tensor:
    return model.generate(**batch, max_new_tokens=NEW, **options)[:, batch["input_ids"].shape[1] :]


@pytest.mark.parametrize("cache", ["dynamic", "static", None])
def test_left_padded_rows_of_unequal_length_are_those_by_hand(model: Any, processor: Any, cache: str | None) -> None:
    batch = prepare(processor, CHATS)
    assert batch["attention_mask"].sum(1).unique().numel() == len(CHATS)
    options: dict[str, Any] = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    written = _written(model, batch, do_sample=False, **options)
    for row, one in enumerate(CHATS):
        assert torch.equal(written[row], greedy_by_hand(model, processor, one))


def test_the_pictures_count(model: Any, processor: Any) -> None:
    batch = prepare(processor, CHATS)
    seen = _written(model, batch, do_sample=False)
    batch["pixel_values"] = batch["pixel_values"].flip(0)
    shuffled = _written(model, batch, do_sample=False)
    assert [torch.equal(*rows) for rows in zip(seen, shuffled, strict=True)] == [False, True, False]


def test_beams_are_those_of_each_row_alone(model: Any, processor: Any) -> None:
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    written = _written(model, prepare(processor, CHATS), **options)
    for row, one in enumerate(CHATS):
        assert torch.equal(written[2 * row : 2 * row + 2], alone(model, processor, one, **options, use_cache=False))
    bare = prepare(processor, CHATS)
    plain = _written(plain_llm(model), {name: bare[name] for name in ("input_ids", "attention_mask")}, **options)
    assert torch.equal(written[2:4], plain[2:4])


@torch.no_grad()
def test_samples_come_from_the_distribution_of_their_own_pictures(model: Any, processor: Any) -> None:
    batch = prepare(processor, CHATS)
    options: dict[str, Any] = {"do_sample": True, "top_k": 5, "temperature": 0.7, "num_return_sequences": 3}
    torch.manual_seed(7)
    out = model.generate(**batch, max_new_tokens=NEW, output_scores=True, return_dict_in_generate=True, **options)
    torch.manual_seed(7)
    assert torch.equal(_written(model, batch, **options), out.sequences[:, batch["input_ids"].shape[1] :])

    scores = torch.stack(out.scores, dim=1)  # [3 of each row, new, vocabulary], what the samples were drawn from
    answers = out.sequences[:, batch["input_ids"].shape[1] :]
    assert len({tuple(answer) for answer in answers.tolist()}) > len(CHATS)
    for row, one in enumerate(CHATS):
        single = prepare(processor, [one])
        prompt = single.pop("input_ids")
        single.pop("attention_mask")
        for sample in range(3 * row, 3 * row + 3):
            ids = torch.cat([prompt, answers[sample : sample + 1, :-1]], dim=1)
            logits = model(input_ids=ids, **single, use_cache=False).logits[0, prompt.shape[1] - 1 :] / 0.7
            fifth = logits.topk(5).values[:, -1:]
            expected = logits.masked_fill(logits < fifth, -torch.inf)
            torch.testing.assert_close(scores[sample], expected, rtol=1e-3, atol=1e-3)


# ---- assisted decoding ------------------------------------------------------------------------------


@pytest.fixture
def assistant(model: Any) -> Any:
    """A plain language model: the same words, no eyes."""
    assistant = plain_llm(model)
    assert type(assistant) is not type(model)
    assistant.generation_config = model.generation_config
    return assistant


@pytest.mark.parametrize("one", [CHATS[0], CHATS[1], CHATS[2]])
def test_a_blind_assistant_changes_nothing(model: Any, processor: Any, assistant: Any, one: Any) -> None:
    """It drafts without the image; what is written is what the model that sees would have written alone."""
    drafts: list[int] = []
    assistant.register_forward_hook(lambda *_: drafts.append(1))
    (written,) = alone(model, processor, one, do_sample=False, assistant_model=assistant)
    assert drafts
    assert torch.equal(written, greedy_by_hand(model, processor, one))


def test_an_assistant_that_sees_changes_nothing(model: Any, processor: Any) -> None:
    passes: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda _module, _args, out: passes.append(out.shape[1]))
    (written,) = alone(model, processor, CHATS[0], do_sample=False, assistant_model=model)
    handle.remove()
    assert torch.equal(written, greedy_by_hand(model, processor, CHATS[0]))
    assert max(passes) > 1  # several drafted tokens were verified in one pass


def test_nor_does_an_assistant_that_sees_in_another_way(model: Any, processor: Any, tmp_path: Path) -> None:
    """Its weights have other shapes: it drafts without the image, too."""
    other = AutoModelForImageTextToText.from_pretrained(save_folder(tmp_path, targets=("q",)))
    (written,) = alone(model, processor, CHATS[0], do_sample=False, assistant_model=other)
    assert torch.equal(written, greedy_by_hand(model, processor, CHATS[0]))


def test_drafts_looked_up_in_the_prompt_change_nothing(model: Any, processor: Any) -> None:
    one = chat("this is this is this is this", 1, 2)
    (written,) = alone(model, processor, one, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(written, greedy_by_hand(model, processor, one))


# ---- compilation ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_a_compiled_decoding_step_without_a_graph_break(model: Any, processor: Any) -> None:
    """Machine code from the default compiler; `tests/model/test_inject.py` checks the traced graph for each cache."""
    batch = prepare(processor, CHATS)
    rows = model.model.perceptual_weights(batch["pixel_values"], batch["image_index"], len(CHATS)).values
    expected = torch.stack([greedy_by_hand(model, processor, one) for one in CHATS])

    torch.compiler.reset()
    step = torch.compile(model.forward, fullgraph=True)
    length = batch["input_ids"].shape[1]
    cache = StaticCache(config=model.config.text_config, max_cache_len=length + NEW)
    mask = torch.cat([batch["attention_mask"], torch.ones(len(CHATS), NEW, dtype=torch.long)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    options: dict[str, Any] = {"perceptual_weights": rows, "past_key_values": cache, "use_cache": True}
    logits = model(
        input_ids=batch["input_ids"], attention_mask=mask[:, :length], position_ids=positions[:, :length], **options
    ).logits
    tokens = [logits[:, -1:].argmax(-1)]
    for at in range(length, length + NEW - 1):
        logits = step(
            input_ids=tokens[-1],
            attention_mask=mask[:, : at + 1],
            position_ids=positions[:, at : at + 1],
            **options,
        ).logits
        tokens.append(logits[:, -1:].argmax(-1))
    torch.compiler.reset()
    assert torch.equal(torch.cat(tokens, dim=1), expected)
