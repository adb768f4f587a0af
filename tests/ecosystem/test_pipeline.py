"""`pipeline("image-text-to-text")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline

from tests.ecosystem.people import CHATS, NEW, Chat, chat, greedy_by_hand
from tests.helpers import picture

OPTIONS: dict[str, Any] = {
    "return_full_text": False,
    "generate_kwargs": {"do_sample": False, "max_new_tokens": NEW},
}


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    """The pipeline of a folder."""
    return pipeline("image-text-to-text", model=str(folder))


def _by_hand(model: Any, processor: Any, one: Any) -> str:
    return processor.decode(greedy_by_hand(model, processor, one), skip_special_tokens=True)


@pytest.mark.parametrize("number", range(len(CHATS)))
def test_a_chat(pipe: Any, model: Any, processor: Any, number: int) -> None:
    """With one picture, with none, with two."""
    (answer,) = pipe(text=CHATS[number], **OPTIONS)
    assert answer["generated_text"] == _by_hand(model, processor, CHATS[number])


def test_a_list_of_chats(pipe: Any, model: Any, processor: Any) -> None:
    answers = pipe(text=list(CHATS), **OPTIONS)
    assert [answer["generated_text"] for (answer,) in answers] == [_by_hand(model, processor, one) for one in CHATS]


@pytest.mark.parametrize("chats", [[CHATS[0], chat("which", 2)], [chat("which", 2, 3), CHATS[0], chat("a", 4, 5)]])
def test_a_batch_of_chats(pipe: Any, model: Any, processor: Any, chats: list[Chat]) -> None:
    """The pipeline prepares them one by one, so that each counts its pictures from 0, and joins them then."""
    answers = pipe(text=list(chats), batch_size=len(chats), **OPTIONS)
    assert [answer["generated_text"] for (answer,) in answers] == [_by_hand(model, processor, one) for one in chats]


def test_a_batch_of_chats_with_and_without_pictures_is_refused(pipe: Any) -> None:
    """By transformers, which joins equal kinds only; the processor itself prepares such a batch in one call."""
    with pytest.raises(ValueError, match="different keys"):
        pipe(text=list(CHATS), batch_size=len(CHATS), **OPTIONS)


def test_the_picture_counts(pipe: Any) -> None:
    answers = {pipe(text=chat("what is this", seed), **OPTIONS)[0]["generated_text"] for seed in range(4)}
    assert len(answers) > 1


def test_a_picture_beside_a_text(pipe: Any, model: Any, processor: Any) -> None:
    (answer,) = pipe(images=picture(1), text="<image>what is this", **OPTIONS)
    batch = processor(images=[picture(1)], text="<image>what is this", return_tensors="pt")
    written = model.generate(**batch, max_new_tokens=NEW, do_sample=False, use_cache=False)
    new = written[0, batch["input_ids"].shape[1] :]
    assert answer["generated_text"] == processor.decode(new, skip_special_tokens=True)
