"""Questions and answers as tokens: one rendering for training, evaluation and use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import DataError, InputError
from ..model.loss import IGNORED
from ..model.processing import harmless
from .sample import MARKER, Message


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
    return _templated([{"role": "user", "content": content}], processor)


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


def supervised_conversation(
    conversation: Sequence[Message], processor: Any, images: int, *, max_tokens: int | None = None
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation up to its last answer, and labels that cover the answers and their ends.

        prompt of the first turn | answer | end | what the template writes up to the next answer | answer | end

    What stands before an answer is the prompt that the model sees in use: the template over the messages before it,
    with the generation prompt. Answers are tokenised apart, as the model writes them, so that one turn is what
    `supervised` gives. A turn in the middle ends with the control token that the template writes there, the last one
    with the tokenizer's end token. An answer without text stays in the history and is not learned.

    Args:
        conversation: keeps to `formats.rules`; its markers are real, control tokens in it are read as plain text.
        processor: the model's.
        images: how many the conversation is about.
        max_tokens: what is beyond is cut off.

    Returns:
        `input_ids` and `labels`, of one length.

    Raises:
        DataError: other markers than images, a template that refuses the conversation or writes it anew as it grows,
            or nothing to learn from.
    """
    named = sum(one.text.count(MARKER) for one in conversation if one.role != "assistant")
    if named != images:
        raise DataError(f"A conversation names {named} images by {MARKER} and is about {images}: name each once.")
    tokenizer = processor.tokenizer
    messages = [_for_template(one, processor) for one in conversation]
    places = [place for place, one in enumerate(conversation) if one.role == "assistant"]
    while places and not conversation[places[-1]].text.strip():
        places.pop()
    if not places:
        raise DataError("A conversation has nothing to learn from: give at least one answer with text.")
    ids: list[int] = []
    labels: list[int] = []
    before, answer = "", ""
    for place in places:
        prompt = _prompt(messages[:place], processor)
        if not ids:
            passage, end = tokenize([prompt], tokenizer)["input_ids"][0], -1
        else:
            passage, end = _passage(before, answer, prompt, tokenizer=tokenizer)
        ids += passage
        labels += [token if answer and number == end else IGNORED for number, token in enumerate(passage)]
        before, answer = prompt, str(messages[place]["content"])
        reply: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
        ids += reply
        labels += reply
    return _cut([*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id], processor, images, max_tokens)


def _for_template(message: Message, processor: Any) -> dict[str, Any]:
    """A message as a chat template takes it: without its markers, or with a block for each."""
    if message.role == "assistant" or MARKER not in message.text:
        return {"role": message.role, "content": harmless(message.text.strip(), processor.tokenizer)}
    if processor.image_placeholder != "mask":
        text = message.text.replace(MARKER, "").strip()
        return {"role": message.role, "content": harmless(text, processor.tokenizer)}
    pieces = [harmless(piece, processor.tokenizer) for piece in message.text.split(MARKER)]
    worded = [number for number, piece in enumerate(pieces) if piece.strip()]
    blocks: list[dict[str, str]] = []
    for number, piece in enumerate(pieces):
        if number:
            blocks.append({"type": "image"})
        if number in worded:
            # Line breaks between the images at either end and the text are the data's, not the user's.
            piece = piece.lstrip() if number == worded[0] else piece
            blocks.append({"type": "text", "text": piece.rstrip() if number == worded[-1] else piece})
    return {"role": message.role, "content": blocks}


def _prompt(messages: Sequence[dict[str, Any]], processor: Any) -> str:
    from jinja2 import TemplateError

    try:
        return _templated(messages, processor)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(one["role"] for one in messages)
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise DataError(
            f"The chat template refuses messages of {roles} ({reason}): change the data, or give model.chat_template."
        ) from error


def _templated(messages: Sequence[dict[str, Any]], processor: Any) -> str:
    return processor.tokenizer.apply_chat_template(
        list(messages), chat_template=processor.chat_template, add_generation_prompt=True, tokenize=False
    )


def _passage(before: str, answer: str, prompt: str, *, tokenizer: Any) -> tuple[list[int], int]:
    """What stands between two answers.

    Args:
        before: the prompt of the first answer.
        answer: the first answer.
        prompt: that of the second.
        tokenizer: the language model's.

    Returns:
        Its token ids, and which of them ends the first answer; -1 for none.

    Raises:
        DataError: the second prompt does not go on where the first answer ends.
    """
    rest = prompt.removeprefix(before)
    lead = len(rest) - len(rest.lstrip()) if answer else 0
    if not prompt.startswith(before) or not rest.startswith(answer, lead):
        raise DataError(
            "The chat template writes earlier turns otherwise than it prompted for them, so that several turns cannot "
            "be learned at once: give model.chat_template one that does not."
        )
    start = len(before) + lead + len(answer)
    tokens = _from_character(start, prompt, tokenizer)
    if tokens is None:  # a token reaches over the end of the answer
        tokens = tokenizer(prompt[start:], add_special_tokens=False)["input_ids"]
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for number, token in enumerate(tokens):
        if token in control:
            return tokens, number
        if tokenizer.decode([token]).strip():
            break
    return tokens, -1


def _from_character(start: int, prompt: str, tokenizer: Any) -> list[int] | None:
    """The tokens of a prompt from a character on; None if none begins there."""
    if not tokenizer.is_fast:
        return None
    whole = tokenize([prompt], tokenizer, return_offsets_mapping=True)
    ids: list[int] = whole["input_ids"][0]
    for number, (begin, end) in enumerate(whole["offset_mapping"][0]):
        if begin >= start:
            return ids[number:]
        if end > start:
            return None
    return None


def _cut(
    ids: list[int], labels: list[int], processor: Any, images: int, max_tokens: int | None
) -> tuple[list[int], list[int]]:
    if max_tokens is None or len(ids) <= max_tokens:
        return ids, labels
    ids, labels = ids[:max_tokens], labels[:max_tokens]
    if all(label == IGNORED for label in labels):
        raise DataError(
            f"A conversation has nothing to learn from in its first {max_tokens} tokens: raise data.max_text_tokens, "
            "or leave it out."
        )
    if processor.image_placeholder == "mask":
        kept = ids.count(processor.tokenizer.convert_tokens_to_ids(processor.image_token))
        if kept != images:
            raise DataError(
                f"A conversation names {images - kept} of its {images} images after its first {max_tokens} tokens: "
                "raise data.max_text_tokens, or leave it out."
            )
    return ids, labels
