"""Questions and answers as tokens: one rendering for training, evaluation and use."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..model.modeling import IGNORED
from ..model.processing import harmless


def render(question: str, processor: Any) -> str:
    """The prompt of one user turn, up to where the answer begins.

    The image leaves no token behind, so this is the prompt of the text alone. Markers and control tokens inside the
    question are read as plain text.

    Raises:
        InputError: an empty question.
    """
    if not question.strip():
        raise InputError("The question is empty: write what you want to know about the image.")
    return processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": harmless(question.strip(), processor.tokenizer)}],
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
