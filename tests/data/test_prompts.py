"""One rendering for training and use: a prompt begins as the language model was trained to see a text begin."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from tests.helpers import TEMPLATE, tiny_processor
from vlora.data.prompts import render, supervised, tokenize
from vlora.model.loss import IGNORED


def _processor(template: str, *, begins: bool) -> Any:
    """Whose tokenizer begins every text with <s>, or does not."""
    processor = tiny_processor()
    processor.chat_template = template
    tokenizer = processor.tokenizer
    if begins:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    return processor


@pytest.mark.parametrize(
    ("template", "begins", "count"),
    [(TEMPLATE, False, 0), (TEMPLATE, True, 1), ("<s>" + TEMPLATE, True, 1), ("<s>" + TEMPLATE, False, 1)],
)
def test_the_token_of_the_beginning_is_neither_lost_nor_doubled(template: str, begins: bool, count: int) -> None:
    processor = _processor(template, begins=begins)
    tokenizer = processor.tokenizer
    ids = tokenize([render("what?", processor)], tokenizer)["input_ids"][0]
    assert ids.count(tokenizer.bos_token_id) == count
    assert ids[:1] == [tokenizer.bos_token_id] or not count
    messages = [{"role": "user", "content": "what?"}]
    whole = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    assert whole["input_ids"][0] == ids

    read, labels = supervised("what?", "a thing", processor)
    assert read[: len(ids)] == ids
    assert labels[: len(ids)] == [IGNORED] * len(ids)
    answer = tokenizer("a thing", add_special_tokens=False)["input_ids"]
    assert read[len(ids) :] == labels[len(ids) :] == [*answer, tokenizer.eos_token_id]
