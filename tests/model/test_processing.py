"""Images and messages -> tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor

from tests.helpers import fresh_python, picture, tiny_processor, tiny_tokenizer
from vlora.errors import InputError
from vlora.model import VLoRAProcessor
from vlora.model.processing import harmless

BATCHES: list[tuple[list[str], list[int]]] = [
    (["<image>what is this"], [0]),
    (["what is this<image>", "is this a thing"], [0, -1]),
    (["a", "<image>b", "c", "d <image> e", "<image>"], [-1, 0, -1, 1, 2]),
]


@pytest.mark.parametrize(("texts", "index"), BATCHES)
def test_the_marker_says_which_image_and_disappears(texts: list[str], index: list[int]) -> None:
    processor = tiny_processor()
    images = [picture(seed) for seed in range(max(index) + 1)]
    batch = processor(images=images, text=list(texts), return_tensors="pt", padding=True)
    bare = processor.tokenizer([text.replace("<image>", "") for text in texts], return_tensors="pt", padding=True)
    assert torch.equal(batch["input_ids"], bare["input_ids"])
    assert torch.equal(batch["attention_mask"], bare["attention_mask"])
    assert batch["image_index"].tolist() == [[one] for one in index]
    for image, pixels in zip(images, batch["pixel_values"], strict=True):
        expected = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(pixels, expected)
    assert set(batch) <= set(processor.model_input_names)


def test_images_may_be_nested_by_text() -> None:
    processor = tiny_processor()
    texts, one, two = ["<image>a", "b", "<image>c"], picture(1), picture(2)
    flat = processor(images=[one, two], text=list(texts), return_tensors="pt", padding=True)
    nested = processor(images=[[one], [], [two]], text=list(texts), return_tensors="pt", padding=True)
    assert all(torch.equal(flat[name], nested[name]) for name in flat)


@pytest.mark.parametrize("images", [None, [], [[], []]])
def test_without_images_there_is_text_only(images: Any) -> None:
    batch = tiny_processor()(images=images, text=["what is this", "a"], return_tensors="pt", padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]  # padded on the left


def test_images_without_text() -> None:
    batch = tiny_processor()(images=[picture()], return_tensors="pt")
    assert set(batch) == {"pixel_values"}


def test_lists_stay_lists() -> None:
    batch = tiny_processor()(images=[picture()], text=["<image>what is this", "what"])
    assert [len(ids) for ids in batch["input_ids"]] == [3, 1]
    assert batch["image_index"] == [[0], [-1]]


def test_the_placeholder_can_stay() -> None:
    processor = tiny_processor(image_placeholder="mask")
    ids = processor(images=[picture()], text="<image>what")["input_ids"]
    assert processor.tokenizer.convert_ids_to_tokens(ids[0]) == ["<image>", "what"]
    assert processor.tokenizer.decode(ids[0], skip_special_tokens=True) == "what"
    assert harmless("<image>what", processor.tokenizer) == "< image>what"


@pytest.mark.parametrize("nested", [False, True])
def test_a_text_may_name_several_images(nested: bool) -> None:
    pictures = [picture(seed) for seed in range(3)]
    texts = ["<image><image>which", "what", "is<image>this"]
    images = [pictures[:2], [], pictures[2:]] if nested else pictures
    batch = tiny_processor()(images=images, text=texts, return_tensors="pt", padding=True)
    assert batch["image_index"].tolist() == [[0, 1], [-1, -1], [2, -1]]
    alone = [tiny_processor()(images=[one], text="<image>", return_tensors="pt")["pixel_values"] for one in pictures]
    assert torch.equal(batch["pixel_values"], torch.cat(alone))


def test_images_nested_under_another_text_are_refused() -> None:
    with pytest.raises(InputError, match="name 2, 0 images with '<image>' and 1, 1 are given, text by text"):
        tiny_processor()(images=[[picture()], [picture()]], text=["<image><image>which", "what"])


@pytest.mark.parametrize("texts", [["<image>a", "<image>b"], ["a", "b"], ["<image>a", "b", "<image>c"]])
def test_more_or_fewer_images_than_named_are_refused(texts: list[str]) -> None:
    images = [picture()] if texts != ["a", "b"] else [picture(), picture()]
    with pytest.raises(ValueError, match="image"):
        tiny_processor()(images=images, text=texts, padding=True)


@pytest.mark.parametrize("as_tensors", [False, True])
def test_messages(as_tensors: bool) -> None:
    processor = tiny_processor()
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "what is"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "what is"}]}],
    ]
    assert processor.apply_chat_template(chats[0]) == "<|im_start|>user\n<image>what is<|im_end|>\n"
    options: dict[str, Any] = {"return_tensors": "pt", "padding": True} if as_tensors else {}
    batch = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs=options
    )
    ids = [list(map(int, row)) for row in batch["input_ids"]]
    expected = processor.tokenizer("<|im_start|>user\nwhat is<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    assert ids == [expected, expected]
    assert [list(map(int, row)) for row in batch["image_index"]] == [[0], [-1]]
    assert len(batch["pixel_values"]) == 1


def test_a_folder_gives_back_the_processor_also_in_a_fresh_process(tmp_path: Path) -> None:
    processor = tiny_processor(image_placeholder="mask", image_token="<picture>")
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is VLoRAProcessor
    assert (again.image_token, again.image_placeholder) == ("<picture>", "mask")
    assert again.chat_template == processor.chat_template
    assert again.tokenizer.padding_side == "left"

    picture().save(tmp_path / "picture.png")
    seen = fresh_python(
        """
        import json, sys
        import vlora
        from PIL import Image
        from transformers import AutoProcessor
        processor = AutoProcessor.from_pretrained(sys.argv[1])
        image = Image.open(sys.argv[1] + "/picture.png")
        batch = processor(images=[image], text=["what is", "<picture>a"], return_tensors="pt", padding=True)
        print(json.dumps({name: values.tolist() for name, values in batch.items()}))
        """,
        tmp_path,
    )
    batch = processor(images=[picture()], text=["what is", "<picture>a"], return_tensors="pt", padding=True)
    assert json.loads(seen) == {name: values.tolist() for name, values in batch.items()}


CONTROL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[[x[[", "||", "|||", "é|")


@given(st.lists(st.sampled_from([*CONTROL, "<", "|", "[[", "x", "s>", "im_end", "|>", " ", "é", "a\n"]), max_size=9))
def test_no_control_token_is_left_to_act(pieces: list[str]) -> None:
    tokenizer = _control_tokenizer()
    text = "".join(pieces)
    clean = harmless(text, tokenizer)
    assert not set(tokenizer(clean, add_special_tokens=False)["input_ids"]) & set(tokenizer.all_special_ids)
    assert clean.replace(" ", "") == text.replace(" ", "")


def test_a_control_token_would_have_acted() -> None:
    tokenizer = _control_tokenizer()
    for token in CONTROL:
        assert tokenizer(token)["input_ids"][0] in tokenizer.all_special_ids
        assert harmless(token, tokenizer) == f"{token[0]} {token[1:]}".replace("| ||", "| | |")
    assert harmless("a plain <question>: [x] | y?", tokenizer) == "a plain <question>: [x] | y?"


def _control_tokenizer(_made: list[Any] = []) -> Any:  # noqa: B006 - made once
    if not _made:
        _made.append(tiny_tokenizer(*CONTROL[5:]))
    return _made[0]
