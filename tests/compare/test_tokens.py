"""A token for the places of images that no text holds and that the embedding has."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers import TEMPLATE, TEXT_VOCABULARY, tiny_tokenizer
from vlora.compare.tokens import expand_images, with_image_token, with_images
from vlora.errors import UnsupportedModel
from vlora.model.loss import IGNORED


def byte_fallback_tokenizer(pad: str = "</s>") -> PreTrainedTokenizerFast:
    """As Llama 2's: unknown characters are read as bytes; no special token is left over."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token=pad
    )


@pytest.mark.parametrize(
    ("special", "rows", "expected"),
    [
        (("<image>",), TEXT_VOCABULARY, "<image>"),
        (("<|vision_start|>", "<|image_pad|>", "<|reserved_0|>"), TEXT_VOCABULARY + 9, "<|image_pad|>"),
        (("<start_of_image>", "<image_soft_token>"), TEXT_VOCABULARY, "<image_soft_token>"),
        ((), TEXT_VOCABULARY + 1, "<image>"),
        (("<|reserved_special_token_0|>", "<|eom|>"), TEXT_VOCABULARY, "<|reserved_special_token_0|>"),
        (("<repo_name>", "<empty_output>"), TEXT_VOCABULARY, "<empty_output>"),
    ],
)
def test_the_token_that_is_taken(special: tuple[str, ...], rows: int, expected: str) -> None:
    tokenizer = tiny_tokenizer(*special)
    assert len(tokenizer) == TEXT_VOCABULARY
    chosen, token = with_image_token(tokenizer, rows=rows, chat_template=TEMPLATE)
    assert token == expected
    [number] = chosen.encode(token, add_special_tokens=False)
    assert number < rows
    assert number not in (chosen.pad_token_id, chosen.bos_token_id, chosen.eos_token_id)
    assert number not in tokenizer("what is this? what colour is the thing?")["input_ids"]
    assert len(tokenizer) == TEXT_VOCABULARY  # the one that was given is left alone


def test_a_token_of_the_chat_is_not_taken() -> None:
    with pytest.raises(UnsupportedModel, match=r"has no token to spare .* among the 280 of its embedding: give as"):
        with_image_token(tiny_tokenizer(), rows=TEXT_VOCABULARY, chat_template=TEMPLATE)


@pytest.mark.parametrize("pad", ["</s>", "<unk>"])
def test_unknown_where_nothing_is_unknown(pad: str) -> None:
    """The tokenizers of Llama 2 and Vicuna, whose embedding is full."""
    tokenizer = byte_fallback_tokenizer(pad)
    chosen, token = with_image_token(tokenizer, rows=len(tokenizer), chat_template="{{ messages }}")
    assert token == "<unk>"
    assert chosen.pad_token == "</s>"  # padding is no image
    assert tokenizer.pad_token == pad
    assert 0 not in chosen("漢字 ☃ a")["input_ids"]
    assert chosen("a<unk>b")["input_ids"].count(0) == 1


def test_unknown_where_it_may_stand_in_a_text() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    with pytest.raises(UnsupportedModel, match="has no token to spare"):
        with_image_token(words, rows=4)


def test_a_wanted_token() -> None:
    tokenizer = tiny_tokenizer("<repo_name>", "<empty_output>")
    _, token = with_image_token(tokenizer, rows=TEXT_VOCABULARY, wanted="<repo_name>")
    assert token == "<repo_name>"
    with pytest.raises(UnsupportedModel, match="cannot spare '<picture>'"):
        with_image_token(tokenizer, rows=TEXT_VOCABULARY, wanted="<picture>")
    chosen, token = with_image_token(tokenizer, rows=TEXT_VOCABULARY + 1, wanted="<picture>")
    assert chosen.convert_tokens_to_ids(token) == TEXT_VOCABULARY


def test_each_image_gets_its_places() -> None:
    ids, labels = expand_images([1, 9, 2, 9, 3], [IGNORED, IGNORED, 2, 9, 3], image_token_id=9, tokens_per_image=3)
    assert ids == [1, 9, 9, 9, 2, 9, 9, 9, 3]
    assert labels == [IGNORED] * 4 + [2] + [IGNORED] * 3 + [3]
    assert expand_images([1, 2], [1, 2], image_token_id=9, tokens_per_image=3) == ([1, 2], [1, 2])


# -- templates ----------------------------------------------------------------------------------------

TEXT_ONLY = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You help.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
AS_A_LIST = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
REFUSES = """\
{% for m in messages %}{% if m.content is not string %}{{ raise_exception('text only') }}{% endif %}{{ m.content }}
{% endfor %}"""
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is "}, {"type": "image"}]},
    {"role": "assistant", "content": "a thing"},
    {"role": "user", "content": "and this?"},
]


@pytest.mark.parametrize("template", [TEXT_ONLY, AS_A_LIST, REFUSES])
def test_a_template_for_text_is_told_images_as_text(template: str) -> None:
    tokenizer = tiny_tokenizer("<empty_output>")
    changed = with_images(template, tokenizer, "<empty_output>")
    told = [CHAT[0] | {"content": "<empty_output>what is <empty_output>"}, *CHAT[1:]]
    for begun in (False, True):
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": begun}
        expected = tokenizer.apply_chat_template(told, chat_template=template, **options)
        assert tokenizer.apply_chat_template(CHAT, chat_template=changed, **options) == expected
        assert tokenizer.apply_chat_template(told, chat_template=changed, **options) == expected


def test_a_template_for_images_is_kept() -> None:
    assert with_images(TEMPLATE, tiny_tokenizer("<image>"), "<image>") == TEMPLATE
    changed = with_images(TEMPLATE, tiny_tokenizer("<empty_output>"), "<empty_output>")
    assert changed == TEMPLATE.replace("<image>", "<empty_output>")
