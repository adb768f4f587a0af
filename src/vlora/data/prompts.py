"""Questions and answers as tokens: one rendering for training, evaluation and use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from ..model.loss import IGNORED
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


def tokenize(prompts: Sequence[str], tokenizer: Any, **options: Any) -> Any:
    """Rendered prompts as tokens, begun as the language model was trained to see a text begin.

    A template that writes the token of the beginning itself gets no second one, as in transformers' processors.

    Args:
        prompts: of one template.
        tokenizer: the language model's.
        **options: for it.
    """
    begun = tokenizer.bos_token is not None and prompts[0].startswith(tokenizer.bos_token)
    return tokenizer(list(prompts), add_special_tokens=not begun, **options)


def supervised(question: str, answer: str, processor: Any) -> tuple[list[int], list[int]]:
    """Token ids of a question with its answer and the end of the turn, and labels that cover the answer only.

    Returns:
        `input_ids` and `labels`, of one length.
    """
    tokenizer = processor.tokenizer
    prompt: list[int] = tokenize([render(question, processor)], tokenizer)["input_ids"][0]
    # Tokenised apart, so that the prompt is cut exactly as it will be when the answer is not yet there.
    reply: list[int] = tokenizer(harmless(answer, tokenizer), add_special_tokens=False)["input_ids"]
    reply = [*reply, tokenizer.eos_token_id]
    return prompt + reply, [IGNORED] * len(prompt) + reply


def supervised_conversation(conversation, processor, images, *, max_tokens=None):
    q, a = conversation
    return supervised(q.text.replace("<image>", ""), a.text, processor)
