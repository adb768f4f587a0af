"""Questions and answers as tokens: one rendering for training, evaluation and use."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..model.modeling import IGNORED
from ..model.processing import harmless


def render(question: str, processor: Any, images: int = 1) -> str:
    """The prompt of one user turn, up to where the answer begins.

    An image leaves no token behind, so this is the prompt of the text alone; only where the model keeps a masked
    place for each image are they named. Markers and control tokens inside the question are read as plain text.

    Args:
        question: what the user wrote.
        processor: the model's.
        images: how many the question is about.

    Raises:
        InputError: an empty question.
    """
    if not question.strip():
        raise InputError("The question is empty: write what you want to know about the image.")
    content: Any = harmless(question.strip(), processor.tokenizer)
    if images and processor.image_placeholder == "mask":
        content = [*[{"type": "image"}] * images, {"type": "text", "text": content}]
    return processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=processor.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )


def supervised(question: str, answer: str, processor: Any) -> tuple[list[int], list[int]]:
    """Token ids of a question with its answer and the end of the turn, and labels that cover the answer only.

    Returns:
        `input_ids` and `labels`, of one length.
    """
    tokenizer = processor.tokenizer
    prompt: list[int] = tokenizer(render(question, processor), add_special_tokens=False)["input_ids"]
    # Tokenised apart, so that the prompt is cut exactly as it will be when the answer is not yet there.
    reply: list[int] = tokenizer(harmless(answer, tokenizer), add_special_tokens=False)["input_ids"]
    reply = [*reply, tokenizer.eos_token_id]
    return prompt + reply, [IGNORED] * len(prompt) + reply
