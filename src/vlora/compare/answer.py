"""Questions about images, answered by a visual-token model in batches, each image looked at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..model.processing import harmless
from .llava import embed
from .tokens import expand_images


def answer(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    questions: Sequence[str],
    max_new_tokens: int = 64,
    *,
    batch_size: int = 16,
    **options: Any,
) -> list[str]:
    """Answer questions greedily.

    Args:
        model: of `build_baseline`, or a LLaVA of transformers loaded from its checkpoint.
        processor: its processor.
        images: for each question an image that the image processor takes, a list of several, or None.
        questions: one user turn each; an image stands before its question.
        max_new_tokens: length of the longest answer.
        batch_size: questions at a time.
        **options: for `generate`.

    Raises:
        InputError: an empty question, or not as many images as questions.
    """
    if len(images) != len(questions):
        raise InputError(
            f"There are {len(questions)} questions and {len(images)} images: give an image, a list of images, or None "
            "for each question."
        )
    answers: list[str] = []
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        sets = [_as_list(one) for one in images[part]]
        answers += _batch(model, processor, sets, questions[part], {"max_new_tokens": max_new_tokens, **options})
    return answers


def _batch(
    model: Any, processor: Any, sets: Sequence[list[Any]], questions: Sequence[str], options: dict[str, Any]
) -> list[str]:
    tokenizer = processor.tokenizer
    rows = [_prompt(model, processor, len(own), text) for own, text in zip(sets, questions, strict=True)]
    inputs = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt").to(model.device)
    pixels, index = _pixels(processor, sets)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            embeds = embed(
                model.model,
                inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=None if pixels is None else pixels.to(model.device),
                image_index=index,
            )
            ids = model.generate(
                inputs_embeds=embeds,
                attention_mask=inputs["attention_mask"],
                **{"do_sample": False, "pad_token_id": tokenizer.pad_token_id, **options},
            )
    finally:
        model.train(was_training)
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _prompt(model: Any, processor: Any, images: int, question: str) -> list[int]:
    """Token ids up to where the answer begins, with the places of the images."""
    if not question.strip():
        raise InputError("The question is empty: write what you want to know about the image.")
    tokenizer = processor.tokenizer
    content: Any = harmless(question.strip(), tokenizer, processor.image_token)
    if images:
        content = [*[{"type": "image"}] * images, {"type": "text", "text": content}]
    prompt: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=processor.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    begun = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(prompt, add_special_tokens=not begun)["input_ids"]
    config = model.config
    places, _ = expand_images(ids, ids, image_token_id=config.image_token_id, tokens_per_image=config.image_seq_length)
    return places


def _pixels(processor: Any, sets: Sequence[list[Any]]) -> tuple[Tensor | None, Tensor | None]:
    """Each distinct image once, `[image, 3, height, width]`, and which of them each question is about."""
    distinct = list({id(image): image for own in sets for image in own}.values())
    if not distinct:
        return None, None
    number = {id(image): position for position, image in enumerate(distinct)}
    width = max(len(own) for own in sets)
    index = [[*(number[id(image)] for image in own), *[-1] * (width - len(own))] for own in sets]
    return processor.image_processor(distinct, return_tensors="pt")["pixel_values"], torch.tensor(index)


def _as_list(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


__all__ = ["answer"]
