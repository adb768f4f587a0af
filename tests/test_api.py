"""Eyes: what a question may be about, in one batch with others."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.helpers import (
    TEMPLATE,
    TEXT_VOCABULARY,
    add_noise,
    picture,
    tiny_generator_config,
    tiny_llm,
    tiny_processor,
    tiny_vision,
)
from vlora.api import Eyes, Looked
from vlora.data.images import image_hash
from vlora.errors import InputError
from vlora.export.adapter import Origin
from vlora.export.peft import state_dict
from vlora.model.assemble import assemble, fingerprint
from vlora.model.weights import FACTORS, MERGEABLE


def _eyes(placeholder: str = "erase", *, device: str = "cpu", **generator: object) -> Eyes:
    torch.manual_seed(0)
    processor = tiny_processor(image_placeholder=placeholder)
    model = assemble(
        causal_lm=tiny_llm(vocab_size=TEXT_VOCABULARY),
        vision_tower=tiny_vision(),
        generator=tiny_generator_config(**generator),
        image_placeholder=placeholder,
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>") if placeholder == "mask" else None,
    )
    add_noise(model, 0.1)
    return Eyes(model.to(device), processor)


@pytest.fixture(scope="module", params=["erase", "mask", "b", "ab"])
def eyes(request: pytest.FixtureRequest, device: str) -> Eyes:
    made = {"factors": request.param} if request.param in FACTORS else {"placeholder": request.param}
    return _eyes(**made, device=device)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [picture(seed) for seed in range(3)]


def test_a_list_with_one_question_is_a_set(eyes: Eyes, pictures: list[Image.Image]) -> None:
    answer = eyes.ask(pictures[:2], "what is this?", max_new_tokens=8)
    assert answer == eyes.ask(pictures[1::-1], "what is this?", max_new_tokens=8)
    assert answer == eyes.ask(eyes.perceive(pictures[:2]), "what is this?", max_new_tokens=8)
    assert answer == "".join(eyes.stream(pictures[:2], "what is this?", max_new_tokens=8)).strip()
    assert answer not in [eyes.ask(one, "what is this?", max_new_tokens=8) for one in pictures]


def test_each_question_has_its_own_set(eyes: Eyes, pictures: list[Image.Image]) -> None:
    sets: list[Looked] = [
        pictures[:2],
        None,
        pictures[2],
        [],
        [pictures[2], pictures[0], pictures[1]],
        eyes.perceive(pictures),
    ]
    questions = ["what?", "what is this?", "is this a thing?", "a?", "what colour is the thing?", "what?"]
    together = eyes.ask(sets, questions, max_new_tokens=6)  # type: ignore[arg-type]
    assert together == [
        eyes.ask(one, question, max_new_tokens=6) for one, question in zip(sets, questions, strict=True)
    ]


def test_one_set_for_all_questions(eyes: Eyes, pictures: list[Image.Image]) -> None:
    seen = eyes.perceive(pictures[:2])
    assert eyes.ask(seen, ["what?", "a thing?"], max_new_tokens=6) == [
        eyes.ask(pictures[:2], question, max_new_tokens=6) for question in ("what?", "a thing?")
    ]


def test_the_same_image_twice_counts_twice(eyes: Eyes, pictures: list[Image.Image]) -> None:
    twice = eyes.ask([pictures[0], pictures[0]], "what is this?", max_new_tokens=8)
    assert twice == eyes.ask([pictures[0], pictures[0].copy()], "what is this?", max_new_tokens=8)
    assert twice != eyes.ask(pictures[0], "what is this?", max_new_tokens=8)


def test_lists_that_do_not_fit_are_refused(eyes: Eyes, pictures: list[Image.Image]) -> None:
    with pytest.raises(InputError, match=r"3 images and 2 questions: .* several images of one question are a list"):
        eyes.ask(pictures, ["what?", "a?"])


def test_only_a_masked_place_is_in_the_prompt() -> None:
    erased, masked = _eyes().tokens(["what?"], [2]), _eyes("mask").tokens(["what?"], [2])
    token = _eyes("mask").model.config.image_token_id
    assert token not in erased["input_ids"]
    assert (masked["input_ids"] == token).sum() == 2
    assert torch.equal(masked["input_ids"][masked["input_ids"] != token], erased["input_ids"][0])
    assert "<image>" in TEMPLATE


@pytest.mark.parametrize("factors", FACTORS)
def test_an_adapter_is_what_would_be_worn(factors: str, pictures: list[Image.Image], device: str) -> None:
    eyes = _eyes(factors=factors, targets=MERGEABLE, device=device)
    seen = eyes.perceive(pictures)
    worn = eyes.model.expand(seen)
    adapter = eyes.adapter(pictures[1])
    torch.testing.assert_close(adapter.weights.values, worn[1].values.cpu(), rtol=1e-4, atol=1e-5)
    assert adapter.images == (Origin("pixels", image_hash(pictures[1])),)
    assert not any(tensor.is_inference() for tensor in state_dict(adapter).values())  # peft may train them
    composed = [eyes.adapter(given) for given in (pictures, seen, worn, [pictures[2], seen[:2]])]
    for one in composed:
        for place in worn.layout.place_of:
            expected = worn.delta(*place).sum(0, keepdim=True).cpu()
            torch.testing.assert_close(one.weights.delta(*place), expected, rtol=1e-4, atol=1e-5)
    kinds = [[image.kind for image in one.images] for one in composed]
    parameters, weights = ["visual parameters"], ["perceptual weights"]
    assert kinds == [["pixels"] * 3, parameters * 3, weights * 3, ["pixels", *parameters * 2]]


def test_what_an_adapter_calls_its_base(pictures: list[Image.Image]) -> None:
    eyes = _eyes(targets=("v",))
    assert eyes.adapter(pictures[0]).base.name is None
    named = eyes.adapter(pictures[0], base_model="owner/name").base
    assert (named.name, named.fingerprint) == ("owner/name", fingerprint(eyes.model.model.language_model))
    assert eyes.adapter(pictures[0]).base.name is None


def test_no_image_is_no_adapter() -> None:
    with pytest.raises(InputError, match="There is no image to make an adapter of: give at least one"):
        _eyes(targets=("v",)).adapter(None)
