"""The public face: eyes answer questions about images (`vlora.load` gives them)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from .data.images import ImageLike, open_image
from .data.prompts import render
from .errors import InputError
from .model import PerceptualWeights, VisualParameters, VLoRAForConditionalGeneration, VLoRAProcessor

Seen: TypeAlias = ImageLike | VisualParameters | PerceptualWeights | None


class Eyes:
    """A model and its processor, ready to answer.

    Args:
        model: the model; put into evaluation mode.
        processor: its processor.
        name: what `load` was asked for.
    """

    def __init__(self, model: VLoRAForConditionalGeneration, processor: VLoRAProcessor, name: str = "") -> None:
        self.model = model.eval()
        self.processor = processor
        self.name = name

    def perceive(self, image: ImageLike | Sequence[ImageLike]) -> VisualParameters:
        """Look at an image, or at several in one batch, once; ask about what was seen as often as you like.

        Raises:
            ImageError: not a usable image.
        """
        images = _as_list(image, 1)
        if not images:
            raise InputError("There is no image to look at: give at least one.")
        pixels = self.processor.image_processor([open_image(i) for i in images], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            return self.model.perceive(pixels.to(self.model.device))

    @overload
    def ask(self, image: Seen | Sequence[Seen], question: str, *, max_new_tokens: int = ..., **options: Any) -> str: ...
    @overload
    def ask(
        self,
        image: Seen | Sequence[Seen],
        question: list[str] | tuple[str, ...],
        *,
        max_new_tokens: int = ...,
        **options: Any,
    ) -> list[str]: ...
    def ask(
        self,
        image: Seen | Sequence[Seen],
        question: str | list[str] | tuple[str, ...],
        *,
        max_new_tokens: int = 64,
        **options: Any,
    ) -> str | list[str]:
        """Answer a question about an image, or many in one batch.

        Args:
            image: a path, bytes, a PIL image, an array, what `perceive` returned, or None for no image. With several
                questions: one for all of them, or a list with one for each.
            question: a question, or a list of questions.
            max_new_tokens: length of the longest answer.
            **options: for `generate` (`do_sample`, `temperature`, `num_beams`, ...); greedy by default.

        Raises:
            InputError: an empty question, or lists of different lengths.
            ImageError: not a usable image.
        """
        questions = [question] if isinstance(question, str) else list(question)
        weights = self._weights(image, len(questions))
        inputs = self.tokens(questions)
        with torch.inference_mode():
            ids = self.model.generate(**inputs, **self._options(weights, max_new_tokens=max_new_tokens, **options))
        answers = self.processor.tokenizer.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        answers = [answer.strip() for answer in answers]
        return answers[0] if isinstance(question, str) else answers

    def stream(self, image: Seen, question: str, *, max_new_tokens: int = 256, **options: Any) -> Iterator[str]:
        """Answer piece by piece. Leaving the loop early stops the generation.

        Args:
            image: as in `ask`.
            question: one question.
            max_new_tokens: length of the longest answer.
            **options: for `generate`.
        """
        inputs = self.tokens([question])  # here, not in the generator below: a mistake is told before the first piece
        return self._pieces(inputs, self._weights(image, 1), {"max_new_tokens": max_new_tokens, **options})

    def _pieces(self, inputs: Any, weights: PerceptualWeights | None, options: dict[str, Any]) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop, failure = threading.Event(), list[BaseException]()

        def work() -> None:
            try:
                with torch.inference_mode():
                    stopping = StoppingCriteriaList([_Stop(stop)])
                    wishes = self._options(weights, streamer=streamer, stopping_criteria=stopping, **options)
                    self.model.generate(**inputs, **wishes)
            except BaseException as error:  # handed to the reader of the stream
                failure.append(error)
                streamer.end()

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            stop.set()
            worker.join()
        if failure:
            raise failure[0]

    def _options(self, weights: PerceptualWeights | None, **options: Any) -> dict[str, Any]:
        """What `generate` is asked for: greedy, unless the caller wants otherwise."""
        pad = self.processor.tokenizer.pad_token_id
        return {"perceptual_weights": weights, "do_sample": False, "pad_token_id": pad, **options}

    def tokens(self, questions: Sequence[str]) -> Any:
        """Prompts of one user turn each, padded on the left: `input_ids` and `attention_mask`.

        Raises:
            InputError: an empty question.
        """
        if not questions:
            raise InputError("There is no question: give at least one.")
        prompts = [render(question, self.processor) for question in questions]
        tokenizer = self.processor.tokenizer
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        return {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def _weights(self, image: Seen | Sequence[Seen], rows: int) -> PerceptualWeights | None:
        """Weights of a batch of `rows` questions; looks at each distinct image once."""
        images: list[Seen] = _as_list(image, rows)
        if len(images) != rows:
            raise InputError(
                f"There are {len(images)} images and {rows} questions: give one image for all questions, or one each."
            )
        distinct = {_key(one): one for one in images if one is not None}
        if not distinct:
            return None
        positions = {key: position for position, key in enumerate(distinct)}
        index = torch.tensor([-1 if one is None else positions[_key(one)] for one in images])
        with torch.inference_mode():
            weights = self._expand(list(distinct.values()))
            return weights.rows(index.to(weights.values.device))

    def _expand(self, images: Sequence[Seen]) -> PerceptualWeights:
        """Weights of distinct images, in their order; pixels are looked at, and parameters expanded, in one batch."""
        pixels = [one for one in images if not isinstance(one, VisualParameters | PerceptualWeights)]
        looked = iter(self.perceive(pixels).values.split(1)) if pixels else iter(())  # type: ignore[arg-type]
        parts = [
            one if isinstance(one, VisualParameters | PerceptualWeights) else VisualParameters(next(looked))
            for one in images
        ]
        for part in parts:
            if len(part) != 1:
                raise InputError(
                    f"A question takes one image; these visual parameters hold {len(part)}: pick one, as in seen[0]."
                )
        parameters = [part for part in parts if isinstance(part, VisualParameters)]
        expanded = iter(())
        if parameters:
            weights = self.model.model.worn_form(self.model.expand(VisualParameters.stack(parameters)))
            expanded = iter(weights[n] for n in range(len(weights)))
        return PerceptualWeights.stack(
            [part if isinstance(part, PerceptualWeights) else next(expanded) for part in parts]
        )


def _as_list(image: Any, times: int) -> list[Any]:
    """Several images as a list; one image as often as it is needed."""
    return list(cast("Sequence[Any]", image)) if isinstance(image, list | tuple) else [image] * times


def _key(image: Seen) -> str | int:
    """What tells images apart: a path by its name, anything else by being itself."""
    return str(image) if isinstance(image, str | Path) else id(image)


class _Stop(StoppingCriteria):
    """Ends a generation when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)
