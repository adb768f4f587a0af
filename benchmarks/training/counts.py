"""FLOPs of a training step on a padded batch, by the formulas of `vlora.cost`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlora.cost import formulas, shapes
from vlora.cost.formulas import FLOPS_PER_MAC


@dataclass(frozen=True)
class Size:
    """A batch: rows of text padded to a width, supervised positions of all rows, images, tokens without padding."""

    rows: int
    width: int
    supervised: int
    images: int
    tokens: int

    @staticmethod
    def of(batch: dict[str, Any]) -> Size:
        """Of what a collator has made."""
        rows, width = batch["input_ids"].shape
        supervised, tokens = int((batch["labels"] >= 0).sum()), int(batch["attention_mask"].sum())
        return Size(rows, width, supervised, len(batch["pixel_values"]), tokens)


@dataclass(frozen=True)
class Counter:
    """Counts what each way of training computes.

    Args:
        llm: the language model.
        encoder: the vision encoder.
        generator: of the perceptual weights.
    """

    llm: shapes.LanguageModel
    encoder: shapes.Encoder
    generator: shapes.Generator

    @staticmethod
    def of(config: Any) -> Counter:
        """Of a VLoRA model's config."""
        llm = shapes.language_model(config.text_config)
        encoder = shapes.encoder(config.vision_config, select=config.vision_feature_select_strategy)
        return Counter(llm, encoder, shapes.generator(config.generator_config, llm, encoder))

    def ours(self, size: Size) -> int:
        """Logits at supervised positions, the backward pass down to the first block that wears weights."""
        return FLOPS_PER_MAC * (
            self._seen(size.images)
            + self._forward(size, positions=size.width, supervised=size.supervised, worn=True)
            + size.rows * self._backward(size.width, generator=self.generator, input_trained=False)
            + size.supervised * self.llm.hidden * self.llm.vocab
        )

    def recipe(self, size: Size) -> int:
        """Every row perceives its image, logits everywhere, all blocks forward twice and backward."""
        logits = size.rows * size.width
        blocks = self._forward(size, positions=size.width, supervised=0, worn=True)
        return FLOPS_PER_MAC * (
            self._seen(size.rows)
            + 2 * blocks
            + 2 * logits * self.llm.hidden * self.llm.vocab
            + size.rows * self._backward(size.width, generator=self.generator, input_trained=True)
        )

    def tokens(self, size: Size) -> int:
        """Visual tokens are part of the width; logits at supervised positions, the backward pass through all blocks."""
        visual, width = self.encoder.features, size.width
        projector = formulas.projector_macs(self.encoder.dim, self.llm, visual)
        projector += formulas.projector_backward_macs(self.encoder.dim, self.llm, visual)
        return FLOPS_PER_MAC * (
            size.images * (formulas.encoder_macs(self.encoder) + projector)
            + self._forward(size, positions=width, supervised=size.supervised, worn=False)
            + size.rows * self._backward(width, generator=None, input_trained=True)
            + size.supervised * self.llm.hidden * self.llm.vocab
        )

    def _seen(self, images: int) -> int:
        perceived = formulas.generator_macs(self.generator) + formulas.generator_backward_macs(self.generator)
        return images * (formulas.encoder_macs(self.encoder) + perceived)

    def _forward(self, size: Size, *, positions: int, supervised: int, worn: bool) -> int:
        blocks = formulas.llm_macs(self.llm, positions, positions, 0)
        blocks += formulas.wearing_macs(self.generator, positions) if worn else 0
        return size.rows * blocks + supervised * self.llm.hidden * self.llm.vocab

    def _backward(self, positions: int, *, generator: shapes.Generator | None, input_trained: bool) -> int:
        return formulas.llm_backward_macs(
            self.llm, positions, 0, generator=generator, input_trained=input_trained, weights_trained=False
        )
