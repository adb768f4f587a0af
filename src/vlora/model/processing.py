"""Images and messages -> tensors.

A prompt names an image by `<image>`; the marker decides which image belongs to which text and then disappears, so
that the language model reads text only. `image_index` keeps what the marker said: for each text the position of its
image among `pixel_values`, or -1.
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
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """What `__call__` may return."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, "image_index"]

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Prepare a batch.

        Args:
            images: images in the order in which the texts name them; nested per text or flat.
            text: one prompt or a list of them, each with one `<image>` or none.
            **kwargs: for the image processor and the tokenizer; `return_tensors="pt"` gives tensors.

        Returns:
            `input_ids`, `attention_mask`, and with images `pixel_values [image, 3, height, width]` and `image_index
            [text]`.

        Raises:
            InputError: a text that names more than one image.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        index = self._image_index(texts)
        if _count(images) == 0:
            images = None
        named, given = len(texts) - index.count(-1), _count(images)
        if texts and named != given:
            raise InputError(
                f"The texts name {named} images with {self.image_token!r} and {given} are given: "
                "name each image once, in the text it belongs to."
            )
        batch = super().__call__(images=images, text=text, **kwargs)
        if images is not None and texts:
            as_tensor = batch.data.get("input_ids") is not None and isinstance(batch["input_ids"], torch.Tensor)
            batch["image_index"] = torch.tensor(index) if as_tensor else index
        return batch

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """What stands in the text where an image was named: nothing, or one position that will be masked."""
        return self.image_token if self.image_placeholder == "mask" else ""

    def _image_index(self, texts: Sequence[str]) -> list[int]:
        index: list[int] = []
        seen = 0
        for text in texts:
            named = text.count(self.image_token)
            if named > 1:
                raise InputError(
                    f"A text names {named} images with {self.image_token!r}; a text takes one image or none: "
                    "split it into one text per image."
                )
            index.append(seen if named else -1)
            seen += named
        return index


def harmless(text: str, tokenizer: Any) -> str:
    """A user's text in which no control token of the tokenizer is left to act as one.

    Each one found (`<|im_end|>`, ...) is broken by a space after its first character, so that it is read as the
    characters it is made of.
    """
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    # Longest first: a broken token must not leave a shorter one whole.
    for token in sorted((token for token in tokens if len(token) > 1), key=len, reverse=True):
        text = re.sub(f"{re.escape(token[0])}(?={re.escape(token[1:])})", lambda found: f"{found[0]} ", text)
    return text


def _count(images: Any) -> int:
    """Images in a nest of lists; a stack of images as one array counts each."""
    if images is None:
        return 0
    if isinstance(images, list | tuple):
        return sum(_count(image) for image in cast("Sequence[Any]", images))
    return len(images) if getattr(images, "ndim", 0) == 4 else 1
