"""transformers' LLaVA, trained the way VLoRA is: an image is looked at once, logits are computed where needed.

The checkpoint is LLaVA's, to the names of its weights.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast, LlavaModel

from ..errors import InputError
from ..model.loss import supervised_loss
from ..model.packing import packing_of
from ..model.vision import encode


class LlavaForConditionalGeneration(transformers.LlavaForConditionalGeneration):
    """LLaVA with a training step of its own; all else is its parent's."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As the parent: transformers gives weights the names they are published by in classes of its own only."""
        plain = copy.copy(self)  # the same parts
        plain.__class__ = transformers.LlavaForConditionalGeneration  # type: ignore[assignment]
        plain.save_pretrained(*args, **kwargs)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        image_index: Tensor | None = None,
        supervised_only: bool = False,
        loss_weights: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the parent's, and what a training step of `VLoRAForConditionalGeneration` is given, with the same meaning.

        Args:
            input_ids: `[rows, text]`, with `image_seq_length` places for each image.
            pixel_values: `[image, 3, height, width]`.
            attention_mask: `[rows, text]`.
            position_ids: as in the language model.
            past_key_values: as in the language model.
            inputs_embeds: as in the language model.
            labels: `[rows, text]`, -100 where nothing is supervised.
            logits_to_keep: compute logits for the last so many positions only, 0 for all.
            image_index: with `supervised_only`, see `embed`.
            supervised_only: compute the logits of supervised positions only, and the loss of `supervised_loss`.
            loss_weights: `[rows]`, with `supervised_only`: what each row counts, in place of the mean over rows.
            **kwargs: passed on to the language model.
        """
        if not supervised_only:
            return super().forward(
                input_ids=input_ids,  # type: ignore[arg-type]
                pixel_values=pixel_values,  # type: ignore[arg-type]
                attention_mask=attention_mask,
                position_ids=position_ids,  # type: ignore[arg-type]
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,  # type: ignore[arg-type]
                labels=labels,  # type: ignore[arg-type]
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        if input_ids is None or labels is None:
            raise InputError("A training step needs input_ids and labels: give both.")
        embeds = embed(
            self.model,
            input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_index=image_index,
        )
        packing, decoder = None, self.model.language_model
        if pixel_values is not None and image_index is None and position_ids is None:
            packing = packing_of(decoder.config, input_ids, attention_mask, labels, images=len(pixel_values))
        if packing:
            embeds, position_ids = packing.pack(embeds), packing.position_ids
            attention_mask = packing.mask(decoder.config, embeds.dtype)
        outputs: Any = self.model(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        hidden = packing.unpack(outputs.last_hidden_state) if packing else outputs.last_hidden_state
        logits, loss = supervised_loss(hidden, labels, self.lm_head, loss_weights)
        return LlavaCausalLMOutputWithPast(loss=loss, logits=logits)  # type: ignore[arg-type]


def embed(
    model: LlavaModel,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    image_index: Tensor | None = None,
) -> Tensor:
    """Embeddings of texts with the visual tokens of their images; each image is looked at once.

    Args:
        model: LLaVA without its head.
        input_ids: `[rows, text]`, with `image_seq_length` places for each image.
        attention_mask: `[rows, text]`; what it hides is no place of an image.
        pixel_values: `[image, 3, height, width]`; None or empty for texts alone.
        image_index: `[rows]` or `[rows, images]`, the images of each row in the order of their places, then -1. None
            means that the rows are in the order of the images, each image with the same number of consecutive rows.

    Returns:
        `[rows, text, hidden]`.

    Raises:
        InputError: images and places that do not fit.
    """
    config: Any = model.config
    embeds: Tensor = model.get_input_embeddings()(input_ids)
    places = input_ids == config.image_token_id
    if attention_mask is not None:
        places = places & attention_mask.bool()
    tokens = int(config.image_seq_length)
    if pixel_values is None or not len(pixel_values):
        _check(places, have=places.new_zeros(len(places)), tokens=tokens)
        return _touch_unused(model, embeds) if model.training else embeds
    features = _look(model, pixel_values, tokens).to(embeds)
    index = _index(image_index, rows=len(places), images=len(features)).to(places.device)
    _check(places, have=(index >= 0).sum(1), tokens=tokens)
    number = places.cumsum(1) - 1  # of a place among those of its row
    first = places & (number % tokens == 0)
    rows, columns = first.nonzero(as_tuple=True)
    order = index[rows, number[rows, columns] // tokens]
    return embeds.masked_scatter(places.unsqueeze(-1), features.index_select(0, order))


def _look(model: LlavaModel, pixel_values: Tensor, tokens: int) -> Tensor:
    """`[image, 3, height, width]` -> visual tokens `[image, tokens, hidden]`."""
    config: Any = model.config
    looked = encode(
        model.vision_tower,
        pixel_values,
        feature_layer=config.vision_feature_layer,
        select=config.vision_feature_select_strategy,
    )
    projector = model.multi_modal_projector  # learns in float32, whatever the encoder is kept in
    features: Tensor = projector(looked.to(projector.linear_1.weight.dtype))
    if features.shape[1] != tokens:
        raise InputError(
            f"Images of {tuple(pixel_values.shape[-2:])} pixels make {features.shape[1]} visual tokens, and this model "
            f"has {tokens} places for each: give images of the size that its processor makes."
        )
    return features


def _index(image_index: Tensor | None, *, rows: int, images: int) -> Tensor:
    """`[rows, images]`, see `embed`."""
    if image_index is None:
        if rows % images:
            raise InputError(
                f"{images} images cannot be shared out evenly to {rows} rows of text; give image_index, the images "
                "of each row (-1 for none)."
            )
        return torch.arange(images).repeat_interleave(rows // images).unsqueeze(1)
    if image_index.ndim not in (1, 2) or len(image_index) != rows or not image_index.numel():
        raise InputError(
            f"image_index must have the shape [{rows}] or [{rows}, images], an entry for each row of text; "
            f"got {tuple(image_index.shape)}."
        )
    if not -1 <= int(image_index.min()) <= int(image_index.max()) < images:
        raise InputError(
            f"image_index names images from {int(image_index.min())} to {int(image_index.max())}; there are {images}, "
            "counted from 0, and -1 is none."
        )
    return image_index.reshape(rows, -1)


def _check(places: Tensor, *, have: Tensor, tokens: int) -> None:
    """Refuse rows with places for other images than they have; a text that was cut may have lost some of its own."""
    counts = places.sum(1)
    wrong = (counts > have * tokens) | (counts % tokens != 0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InputError(
            f"Row {row} of the batch has {int(counts[row])} places for visual tokens and {int(have[row])} images of "
            f"{tokens}: give a text {tokens} places for each of its images."
        )


def _touch_unused(model: LlavaModel, embeds: Tensor) -> Tensor:
    """Give a batch without images a gradient of zero for what it would have looked with; others wait for it."""
    parts = (*model.vision_tower.parameters(), *model.multi_modal_projector.parameters())
    entries = [parameter.reshape(-1)[:1].sum().to(embeds) for parameter in parts if parameter.requires_grad]
    return embeds + 0 * torch.stack(entries).sum() if entries else embeds


__all__ = ["LlavaForConditionalGeneration", "embed"]
