"""The visual-token baseline of `vlora.compare`, with a training step as lean as ours.

    image ─ vision ─► features ─ projector ─► visual tokens, in their places in the text

Logits at supervised positions only, no recomputation, the same batches by length. Only the projector learns, as in
stage one of LLaVA; since it lies before the language model, the backward pass goes through all of its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from vlora.compare.baseline import build_baseline, expand_images
from vlora.train.learner import Learner
from vlora.train.looks import Collator, Look


def baseline_of(learner: Learner) -> tuple[Any, Any]:
    """The baseline made of a learner's language model and encoder, which is no VLoRA any more after it.

    Returns:
        The model, of which the projector learns, and its processor.
    """
    body, config = learner.model.model, learner.config.model
    body.wearer.remove()
    causal_lm: Any = nn.Module()
    causal_lm.config, causal_lm.generation_config = learner.model.config.text_config, learner.model.generation_config
    causal_lm.model, causal_lm.lm_head = body.language_model, learner.model.lm_head
    model, processor = build_baseline(
        causal_lm=causal_lm,
        vision_tower=body.vision_tower,
        image_processor=learner.processor.image_processor,
        tokenizer=learner.processor.tokenizer,
        feature_layer=config.vision_feature_layer,
        select=config.vision_feature_select_strategy,
        chat_template=learner.processor.chat_template,
    )
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    return model.train(), processor


class Expanding(Collator):
    """Gives every image the places of its visual tokens, then makes micro-batches.

    Args:
        model: the baseline.
        processor: its.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(processor.tokenizer.pad_token_id)
        config = model.config
        self.places = {"image_token_id": config.image_token_id, "tokens_per_image": config.image_seq_length}

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """See `Collator`."""
        return super().__call__([self._expanded(item) if isinstance(item, Look) else item for item in items])

    def _expanded(self, look: Look) -> Look:
        return replace(look, texts=[expand_images(*text, **self.places) for text in look.texts])
