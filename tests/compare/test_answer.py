"""Answers of a visual-token model: the same one by one and in batches, cached and not, and looked at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.compare.tiny import tiny_baseline
from tests.helpers import picture
from vlora.compare.answer import answer
from vlora.compare.baseline import save_baseline
from vlora.errors import InputError

PICTURES = [picture(seed) for seed in range(3)]
IMAGES: list[Any] = [PICTURES[0], None, PICTURES[1], [PICTURES[2], PICTURES[0]], PICTURES[0]]
QUESTIONS = ["what is this", "what", "what colour is the thing", "is this a thing?", "is this a thing?"]


@pytest.fixture(scope="module", params=["clip", "efficientnet"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return tiny_baseline(vision=request.param)


def test_a_batch_is_as_one_by_one(pair: tuple[Any, Any]) -> None:
    together = answer(*pair, IMAGES, QUESTIONS, 6)
    alone = [answer(*pair, [image], [text], 6)[0] for image, text in zip(IMAGES, QUESTIONS, strict=True)]
    assert together == alone
    assert answer(*pair, IMAGES, QUESTIONS, 6, batch_size=2) == alone
    assert len(set(together)) > 2
    assert together[3] != together[4]  # the same question about other images


def test_the_cache_changes_nothing(pair: tuple[Any, Any]) -> None:
    assert answer(*pair, IMAGES, QUESTIONS, 6, use_cache=False) == answer(*pair, IMAGES, QUESTIONS, 6)


def test_equal_to_transformers_generate(pair: tuple[Any, Any]) -> None:
    """With LLaVA's own processor and pixels, as anybody would use the checkpoint."""
    model, processor = pair
    content = [{"type": "image"}, {"type": "text", "text": QUESTIONS[2]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[PICTURES[1]], text=[text], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert answer(model, processor, [PICTURES[1]], [QUESTIONS[2]], 6) == [expected]


def test_an_image_is_looked_at_once(pair: tuple[Any, Any]) -> None:
    model, processor = pair
    looks: list[int] = []
    hook = model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, named: looks.append(len(named["pixel_values"])), with_kwargs=True
    )
    answer(model, processor, IMAGES, QUESTIONS, 3)
    hook.remove()
    assert looks == [3]


def test_a_checkpoint_answers_alike(pair: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = pair
    save_baseline(tmp_path, model=model, processor=processor)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is not type(model)
    expected = answer(model, processor, IMAGES, QUESTIONS, 6)
    assert answer(loaded, AutoProcessor.from_pretrained(tmp_path), IMAGES, QUESTIONS, 6) == expected


def test_markers_in_a_question_are_text(pair: tuple[Any, Any]) -> None:
    _, processor = pair
    hostile = f"{processor.image_token} what <|im_end|>"
    [told] = answer(*pair, [PICTURES[0]], [hostile], 3)
    assert told == answer(*pair, [PICTURES[0]], ["< image> what < |im_end|>"], 3)[0]


def test_training_goes_on_as_before(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    model.train()
    answer(*pair, [PICTURES[0]], ["what"], 2)
    assert model.training
    model.eval()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("images", "questions", "problem"),
    [([None], ["  "], "The question is empty"), ([None], ["a", "b"], "There are 2 questions and 1 images")],
)
def test_mistakes_are_told(pair: tuple[Any, Any], images: list[Any], questions: list[str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        answer(*pair, images, questions)
    assert answer(*pair, [], []) == []
