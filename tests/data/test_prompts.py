"""One rendering for training and use: a prompt begins as the language model was trained to see a text begin."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from tests.helpers import TEMPLATE, tiny_processor
from vlora.data.prompts import render, supervised, supervised_conversation, tokenize
from vlora.data.sample import MARKER, Message
from vlora.errors import DataError
from vlora.model.loss import IGNORED


def _processor(template: str, *, begins: bool, **options: Any) -> Any:
    """Whose tokenizer begins every text with <s>, or does not."""
    processor = tiny_processor(**options)
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


# -- several turns ------------------------------------------------------------------------------------

LLAMA_2 = """\
{%- for m in messages -%}{%- if m.role == "user" -%}<s>[INST] {{ m.content }} [/INST]
{%- elif m.role == "system" -%}{{ m.content }}{%- else %} {{ m.content | trim }} </s>{%- endif -%}{%- endfor -%}"""
FORGETFUL = """\
{%- for m in messages -%}{%- if m.role != "assistant" or loop.last -%}{{ m.role }}: {{ m.content }}</s>{%- endif -%}
{%- endfor -%}{%- if add_generation_prompt -%}assistant:{%- endif -%}"""
PLAIN = """\
{%- for m in messages -%}{{ m.role }}: {{ m.content }}
{% endfor -%}{%- if add_generation_prompt -%}assistant:{%- endif -%}"""
CHAT = (
    Message("system", "Be brief."),
    Message("user", f"{MARKER}\nwhat is this"),
    Message("assistant", "a thing"),
    Message("user", "what colour is the thing"),
    Message("assistant", "thing is a colour"),
)


def _learned(labels: list[int]) -> list[list[int]]:
    """The stretches of labels that are learned."""
    stretches: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORED:
            stretches[-1].append(label)
        elif stretches[-1]:
            stretches.append([])
    return [one for one in stretches if one]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize(
    ("template", "placeholder"),
    [
        (TEMPLATE, "erase"),
        (TEMPLATE, "mask"),
        ("<s>" + TEMPLATE, "erase"),
        ("<s>" + TEMPLATE, "mask"),
        (LLAMA_2, "erase"),
    ],
)
def test_each_answer_stands_after_the_prompt_seen_in_use(template: str, begins: bool, placeholder: str) -> None:
    processor = _processor(template, begins=begins, image_placeholder=placeholder)
    tokenizer = processor.tokenizer
    ids, labels = supervised_conversation(CHAT, processor, 1)
    assert [a for a, b in zip(ids, labels, strict=True) if b not in (a, IGNORED)] == []

    named = [{"type": "image"}] if placeholder == "mask" else []
    texts: list[dict[str, Any]] = [{"role": one.role, "content": one.text} for one in CHAT]
    text = "what is this"
    texts[1]["content"] = [*named, {"type": "text", "text": text}] if named else text
    end = {TEMPLATE: "<|im_end|>", LLAMA_2: "</s>"}.get(template.removeprefix("<s>"), "</s>")
    for place, last in ((2, end), (4, tokenizer.eos_token)):
        prompt = processor.tokenizer.apply_chat_template(
            texts[:place], chat_template=processor.chat_template, add_generation_prompt=True, tokenize=False
        )
        seen = tokenize([prompt], tokenizer)["input_ids"][0]
        answer = tokenizer(CHAT[place].text, add_special_tokens=False)["input_ids"]
        count = len(seen) if template is not LLAMA_2 or place == 2 else None
        if count is not None:
            assert ids[:count] == seen
            assert set(labels[count - 1 : count]) == {IGNORED}
            assert labels[count : count + len(answer)] == answer
        assert [*answer, tokenizer.convert_tokens_to_ids(last)][-1] in labels
    assert len(_learned(labels)) == (3 if template is LLAMA_2 else 2)
    assert labels[-1] == tokenizer.eos_token_id


def test_one_turn_is_as_it_was() -> None:
    for placeholder in ("erase", "mask"):
        processor = tiny_processor(image_placeholder=placeholder)
        one = (Message("user", MARKER + "what is <|im_end|> this?"), Message("assistant", "a </s> thing"))
        assert supervised_conversation(one, processor, 1) == supervised(
            "what is <|im_end|> this?", "a </s> thing", processor
        )


def test_text_without_an_image() -> None:
    processor = tiny_processor(image_placeholder="mask")
    chat = (Message("user", "what?"), Message("assistant", "this"))
    ids, _ = supervised_conversation(chat, processor, 0)
    prompt = tokenize([render("what?", processor, images=0)], processor.tokenizer)["input_ids"][0]
    assert ids[: len(prompt)] == prompt
    assert processor.tokenizer.convert_tokens_to_ids("<image>") not in ids


def test_images_keep_their_places() -> None:
    chat = (Message("user", f"{MARKER}\nis {MARKER} this\n{MARKER}"), Message("assistant", "no"))
    processor = tiny_processor(image_placeholder="mask")
    ids, _ = supervised_conversation(chat, processor, 3)
    assert "user\n<image>is <image> this<image><|im_end|>" in processor.tokenizer.decode(ids)
    processor = tiny_processor()
    ids, _ = supervised_conversation(chat, processor, 3)
    assert "user\nis  this<|im_end|>" in processor.tokenizer.decode(ids)


def test_an_image_alone_may_be_asked_about() -> None:
    chat = (Message("user", MARKER), Message("assistant", "a thing"))
    ids, labels = supervised_conversation(chat, tiny_processor(), 1)
    assert len(_learned(labels)) == 1
    assert len(ids) == len(labels)


def test_an_empty_answer_is_not_learned() -> None:
    processor = tiny_processor()
    chat = [*CHAT[:2], Message("assistant", " "), *CHAT[3:], Message("user", "thanks"), Message("assistant", "")]
    ids, labels = supervised_conversation(chat, processor, 1)
    assert len(_learned(labels)) == 1
    assert processor.tokenizer.decode(ids).endswith("thing is a colour</s>")


def test_a_template_without_ends_ends_only_the_last_answer() -> None:
    processor = _processor(PLAIN, begins=False)
    ids, labels = supervised_conversation(CHAT, processor, 1)
    first, last = _learned(labels)
    assert processor.tokenizer.decode(first) == "a thing"
    assert last[-1] == processor.tokenizer.eos_token_id
    assert processor.tokenizer.eos_token_id not in ids[:-1]


@pytest.mark.parametrize(
    ("template", "words"), [(FORGETFUL, "writes earlier turns otherwise"), ("{{ raise_exception('no') }}", "refuses")]
)
def test_templates_that_will_not_do(template: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        supervised_conversation(CHAT, _processor(template, begins=False), 1)


def test_too_long() -> None:
    processor = tiny_processor()
    ids, labels = supervised_conversation(CHAT, processor, 1)
    begin = next(number for number, label in enumerate(labels) if label != IGNORED)
    cut, rest = supervised_conversation(CHAT, processor, 1, max_tokens=begin + 1)
    assert (cut, rest) == (ids[: begin + 1], labels[: begin + 1])
    with pytest.raises(DataError, match="nothing to learn from in its first"):
        supervised_conversation(CHAT, processor, 1, max_tokens=begin)
    late = (*CHAT[:1], Message("user", "what"), CHAT[2], Message("user", MARKER), CHAT[4])
    with pytest.raises(DataError, match="1 of its 1 images"):
        supervised_conversation(late, tiny_processor(image_placeholder="mask"), 1, max_tokens=begin + 2)


def test_markers_are_counted() -> None:
    with pytest.raises(DataError, match="names 1 images"):
        supervised_conversation(CHAT, tiny_processor(), 2)
