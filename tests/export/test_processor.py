"""Prompts, tokens and pixels of a converted checkpoint, as the authors' code makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlamaTokenizer

from tests.export.checkpoints import change_fields, copy_official, in_two_parts
from tests.helpers import picture
from vlora.errors import CheckpointError, MissingDependency, ModelNotFound, UnsupportedModel
from vlora.export.processor import processor_of
from vlora.export.source import read_source
from vlora.model import VLoRAProcessor

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
SIZE = 28


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return copy_official(tmp_path)


def processor(checkpoint: Path) -> VLoRAProcessor:
    """The processor as it is found again after it was saved."""
    made = processor_of(read_source(checkpoint, None, None))
    folder = checkpoint.parent / "saved"
    made.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "vlora"}')
    return AutoProcessor.from_pretrained(folder)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"} if part is None else _text(part) for part in parts]}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_a_conversation(checkpoint: Path) -> None:
    talk = [user("What", None, " is it?"), {"role": "assistant", "content": "A dog."}, user("{{ 7 * 7 }}?")]
    asked = f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A dog.</s>USER: {{{{ 7 * 7 }}}}?"
    ours = processor(checkpoint)
    assert ours.apply_chat_template(talk, add_generation_prompt=True) == f"{asked} ASSISTANT:"
    talk.append({"role": "assistant", "content": [_text("49")]})
    assert ours.apply_chat_template(talk) == f"{asked} ASSISTANT: 49</s>"


@pytest.mark.parametrize("content", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_a_system_message(checkpoint: Path, content: Any) -> None:
    talk = [{"role": "system", "content": content}, {"role": "user", "content": "Why?"}]
    assert processor(checkpoint).apply_chat_template(talk, add_generation_prompt=True) == (
        "Be brief. USER: Why? ASSISTANT:"
    )


def test_the_first_token_is_neither_lost_nor_doubled(checkpoint: Path) -> None:
    ours, talk = processor(checkpoint), [user(None, "What is it?")]
    prompt = ours.apply_chat_template(talk, add_generation_prompt=True)
    ids = ours(text=prompt, images=picture())["input_ids"][0]
    talk[0]["content"][0]["image"] = picture()
    whole = ours.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert ids[:2] == [1, 35]
    assert ids.count(1) == 1
    assert list(whole["input_ids"][0]) == ids


@pytest.mark.parametrize("legacy", [True, False, None])
def test_sentencepiece_writes_a_space_before_a_text(checkpoint: Path, legacy: bool | None) -> None:
    """Their code gives it what stands behind an image as a text of its own; in one text it is none."""
    letters = sorted({*"▁<>/.:?\n", *SYSTEM, *"USER ASSISTANT What is it", "▁W", "▁\n"})
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=[("▁", "W")], pad_token="<unk>", add_bos_token=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (checkpoint / name).unlink()
    tokenizer.save_pretrained(checkpoint)
    path = checkpoint / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | ({} if legacy is None else {"legacy": legacy})
    path.write_text(json.dumps(settings))
    theirs, ours = AutoTokenizer.from_pretrained(checkpoint), processor(checkpoint)
    before, behind = f"{SYSTEM} USER: ", "\nWhat is it? ASSISTANT:"
    expected = [
        *theirs(before)["input_ids"],
        ours.tokenizer.convert_tokens_to_ids("<image>"),
        *theirs(behind)["input_ids"][1:],
    ]
    assert expected[-len(behind) - 1] == vocabulary["▁"]
    prompt = ours.apply_chat_template([user(None, "What is it?")], add_generation_prompt=True)
    assert ours(text=prompt, images=picture())["input_ids"][0] == expected
    assert ours.tokenizer.decode(theirs("What is it?")["input_ids"], skip_special_tokens=True) == "What is it?"


def test_a_tokenizer_that_cuts_otherwise(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["pre_tokenizer"] = None
    settings["normalizer"] = {"type": "Prepend", "prepend": "!"}
    settings["added_tokens"].append(settings["added_tokens"][0] | {"id": 360, "content": "<image>", "normalized": True})
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"cuts the text around <image> otherwise"):
        processor(checkpoint)


@pytest.mark.parametrize("text", ["", "{", '{"model": 1}'])
def test_a_damaged_tokenizer(checkpoint: Path, text: str) -> None:
    (checkpoint / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"cannot be read: get it again\.$"):
        processor(checkpoint)


def test_no_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"There is no tokenizer\.json or tokenizer\.model in .*checkpoint"):
        processor(checkpoint)


def test_a_tokenizer_that_needs_sentencepiece(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint / "tokenizer.json").rename(checkpoint / "tokenizer.model")
    monkeypatch.setattr("vlora.export.processor.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="pip install sentencepiece"):
        processor(checkpoint)


def test_the_tokenizer_of_the_language_model(checkpoint: Path) -> None:
    llm = in_two_parts(checkpoint)
    assert not (checkpoint / "tokenizer.json").exists()
    assert processor_of(read_source(checkpoint, None, llm)).tokenizer.convert_tokens_to_ids("<image>") == 360


# ---- pixels -----------------------------------------------------------------------------------------


def _settings(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint.parent / "vision" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (50, 50), (41, 64)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_padding(checkpoint: Path, size: tuple[int, int], mode: str) -> None:
    """`pad` is a square of the mean colour, with the picture in its middle, then CLIP's own steps."""
    image = picture(size=size).convert(mode)
    mean = (0.48145466, 0.4578275, 0.40821073)
    square = Image.new("RGB", (max(size), max(size)), tuple(int(255 * one) for one in mean))
    square.paste(image.convert("RGB"), ((max(size) - size[1]) // 2, (max(size) - size[0]) // 2))
    expected = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    expected = (expected - mean) / (0.26862954, 0.26130258, 0.27577711)
    pixels = processor(checkpoint).image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels[0], torch.from_numpy(expected.transpose(2, 0, 1)).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("wish", [None, "square"])
def test_no_padding(checkpoint: Path, wish: str | None) -> None:
    change_fields(checkpoint, image_aspect_ratio=wish)
    image = picture(size=(28, 56))
    middle = image.crop((14, 0, 42, 28))
    plain = processor(checkpoint).image_processor
    assert not getattr(plain, "do_pad", False)
    assert torch.equal(*(plain(one, return_tensors="pt")["pixel_values"] for one in (image, middle)))


def test_settings_of_older_transformers(checkpoint: Path) -> None:
    expected = processor(checkpoint).image_processor(picture(), return_tensors="pt")["pixel_values"]
    path = checkpoint.parent / "vision" / "preprocessor_config.json"
    new = json.loads(path.read_text())
    kept = ("do_center_crop", "do_normalize", "do_resize", "image_mean", "image_std", "resample")
    old = {name: new[name] for name in kept}
    path.write_text(
        json.dumps(old | {"crop_size": SIZE, "size": SIZE, "feature_extractor_type": "CLIPFeatureExtractor"})
    )
    pixels = processor(checkpoint).image_processor(picture(), return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, expected)


def test_pixels_of_another_kind(checkpoint: Path) -> None:
    _settings(checkpoint, image_processor_type="SiglipImageProcessor")
    with pytest.raises(UnsupportedModel, match="CLIP"):
        processor(checkpoint)


@pytest.mark.parametrize(("kind", "text"), [(ModelNotFound, None), (CheckpointError, "{")])
def test_no_settings(checkpoint: Path, kind: type[Exception], text: str | None) -> None:
    path = checkpoint.parent / "vision" / "preprocessor_config.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(kind, match=r"preprocessor_config\.json"):
        processor(checkpoint)
