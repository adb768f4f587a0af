"""Images and messages -> tensors.

A prompt names its images by `<image>`; the markers decide which images belong to which text and then disappear, so
that the language model reads text only. `image_index` keeps what they said: for each text the positions of its images
among `pixel_values`, filled up with -1. With `image_placeholder: mask` a marker stays as one token, which the model
masks out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import ProcessorMixin

from ..errors import InputError


class VLoRAProcessor(ProcessorMixin):
    """Joins an image processor and a tokenizer.

    Args:
        image_processor: any image processor of transformers.
        tokenizer: the language model's; pads on the left, as generation needs.
        chat_template: Jinja template; None keeps the tokenizer's.
        image_token: how a prompt names an image.
        image_placeholder: as in `VLoRAConfig`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        image_placeholder: str = "erase",
        **kwargs: Any,
    ) -> None:
        self.image_token = image_token
        self.image_placeholder = image_placeholder
        if tokenizer is not None:
            tokenizer.padding_side = "left"
            if image_placeholder == "mask" and image_token not in tokenizer.get_vocab():
                tokenizer.add_tokens([image_token], special_tokens=True)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """What `__call__` may return."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, "image_index"]

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Prepare a batch.

        Args:
            images: images in the order in which the texts name them; nested per text or flat.
            text: one prompt or a list of them, each with an `<image>` for each of its images.
            **kwargs: for the image processor and the tokenizer; `return_tensors="pt"` gives tensors.

        Returns:
            `input_ids`, `attention_mask`, and with images `pixel_values [image, 3, height, width]` and `image_index
            [text, images]`.

        Raises:
            InputError: the texts name other images than there are.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        named = [one.count(self.image_token) for one in texts]
        if texts:
            self._check(named, images)
        if _count(images) == 0:
            images = None
        batch = super().__call__(images=images, text=text, **kwargs)
        if images is not None and texts:
            index = _index(named)
            as_tensor = batch.data.get("input_ids") is not None and isinstance(batch["input_ids"], torch.Tensor)
            batch["image_index"] = torch.tensor(index) if as_tensor else index
        return batch

    def apply_chat_template(
        self, conversation: Any, *args: Any, sanitize_control_tokens: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers' own.

        Args:
            conversation: messages, or a list of conversations.
            *args: as there.
            sanitize_control_tokens: read markers of images and control tokens in messages, tools and documents as plain
                text, see `harmless`; what a user writes is then not obeyed.
            **kwargs: as there.
        """
        if sanitize_control_tokens:
            conversation = self._harmless_within(conversation)
            kwargs = {
                name: self._harmless_within(value) if name != "chat_template" else value
                for name, value in kwargs.items()
            }
        return super().apply_chat_template(conversation, *args, **kwargs)

    def _harmless_within(self, value: Any) -> Any:
        value = getattr(value, "messages", value)  # the chats of a pipeline
        if isinstance(value, str):
            return harmless(value, self.tokenizer, self.image_token)
        if isinstance(value, dict):
            return {name: self._harmless_within(one) for name, one in value.items()}
        return [self._harmless_within(one) for one in value] if isinstance(value, list | tuple) else value

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """What stands in the text where an image was named: nothing, or one position that will be masked."""
        return self.image_token if self.image_placeholder == "mask" else ""

    def _check(self, named: Sequence[int], images: Any) -> None:
        """Refuse texts that name other images than there are, in all or, if they are nested, in one text."""
        advice = "name each image once, in the text it belongs to."
        if sum(named) != _count(images):
            raise InputError(
                f"The texts name {sum(named)} images with {self.image_token!r} and {_count(images)} are given: {advice}"
            )
        nested = isinstance(images, list | tuple) and any(isinstance(one, list | tuple) for one in images)
        given = [_count(one) for one in images] if nested else named
        if list(given) != list(named):
            raise InputError(
                f"The texts name {_listed(named)} images with {self.image_token!r} and {_listed(given)} are given, "
                f"text by text: {advice}"
            )


def _index(named: Sequence[int]) -> list[list[int]]:
    """For each text the numbers of its images, filled up with -1 to the length of the longest."""
    width, seen = max(1, *named), 0
    index: list[list[int]] = []
    for count in named:
        index.append([*range(seen, seen + count), *[-1] * (width - count)])
        seen += count
    return index


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def harmless(text: str, tokenizer: Any, *markers: str) -> str:
    """A user's text in which no control token of the tokenizer, and none of the markers, is left to act as one.

    Each one found (`<|im_end|>`, ...) is broken by a space after its first character, so that it is read as the
    characters it is made of.
    """
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} | set(markers)
    # Longest first: a broken token must not leave a shorter one whole.
    for token in sorted((token for token in tokens if len(token) > 1), key=len, reverse=True):
        if token in text:
            text = re.sub(f"{re.escape(token[0])}(?={re.escape(token[1:])})", lambda found: f"{found[0]} ", text)
    return text


def _count(images: Any) -> int:
    """Images in a nest of lists; a stack of images as one array counts each."""
    if images is None:
        return 0
    if isinstance(images, list | tuple):
        return sum(_count(image) for image in cast("Sequence[Any]", images))
    return len(images) if getattr(images, "ndim", 0) == 4 else 1
