"""The public face: eyes answer questions about images (`vlora.load` gives them)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, overload

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from .data.images import ImageLike, image_hash, open_image
from .data.prompts import render, tokenize
from .errors import InputError
from .model import PerceptualWeights, VisualParameters, VLoRAForConditionalGeneration, VLoRAProcessor

if TYPE_CHECKING:
    from .export.adapter import Adapter, Base, Origin

Seen: TypeAlias = ImageLike | VisualParameters | PerceptualWeights | None
Looked: TypeAlias = Seen | Sequence[Seen | Sequence[Seen]]
"""What questions may be about: see `Eyes.ask`."""


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
        self._base: Base | None = None

    def perceive(self, image: ImageLike | Sequence[ImageLike]) -> VisualParameters:
        """Look at an image, or at several in one batch, once; ask about what was seen as often as you like.

        Raises:
            ImageError: not a usable image.
        """
        images = _as_set(image)
        if not images:
            raise InputError("There is no image to look at: give at least one.")
        pixels = self.processor.image_processor([open_image(i) for i in images], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            return self.model.perceive(pixels.to(self.model.device))

    @overload
    def ask(self, image: Looked, question: str, *, max_new_tokens: int = ..., **options: Any) -> str: ...
    @overload
    def ask(
        self,
        image: Looked,
        question: list[str] | tuple[str, ...],
        *,
        max_new_tokens: int = ...,
        **options: Any,
    ) -> list[str]: ...
    def ask(
        self,
        image: Looked,
        question: str | list[str] | tuple[str, ...],
        *,
        max_new_tokens: int = 64,
        **options: Any,
    ) -> str | list[str]:
        """Answer a question about an image, or many in one batch.

        Args:
            image: a path, bytes, a PIL image, an array, what `perceive` returned, or None for no image. With a list
                of questions: one for all of them, or a list with one for each. Several images of one question are a
                list: `ask(["a.png", "b.png"], "...")`, `ask([["a.png", "b.png"], "c.png"], ["...", "..."])`, or
                what `perceive` returned for them; the model wears the sum of their ΔW, in which no order is left.
            question: a question, or a list of questions.
            max_new_tokens: length of the longest answer.
            **options: for `generate` (`do_sample`, `temperature`, `num_beams`, ...); greedy by default.

        Raises:
            InputError: an empty question, or lists of different lengths.
            ImageError: not a usable image.
        """
        questions = [question] if isinstance(question, str) else list(question)
        sets = _sets(image, question)
        weights = self._weights(sets)
        inputs = self.tokens(questions, [sum(map(_images, one)) for one in sets])
        with torch.inference_mode():
            ids = self.model.generate(**inputs, **self._options(weights, max_new_tokens=max_new_tokens, **options))
        answers = self.processor.tokenizer.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        answers = [answer.strip() for answer in answers]
        return answers[0] if isinstance(question, str) else answers

    def stream(self, image: Looked, question: str, *, max_new_tokens: int = 256, **options: Any) -> Iterator[str]:
        """Answer piece by piece. Leaving the loop early stops the generation.

        Args:
            image: as in `ask`.
            question: one question.
            max_new_tokens: length of the longest answer.
            **options: for `generate`.
        """
        # Here, not in the generator below: a mistake is told before the first piece.
        (images,) = sets = _sets(image, question)
        inputs = self.tokens([question], [sum(map(_images, images))])
        return self._pieces(inputs, self._weights(sets), {"max_new_tokens": max_new_tokens, **options})

    def adapter(self, image: Seen | Sequence[Seen], *, base_model: str | None = None) -> Adapter:
        """What the model would wear for an image, as a LoRA adapter of its plain language model.

        `vlora.export.peft` and `vlora.export.gguf` write it, or hand it over in memory.

        Args:
            image: as in `ask`; of several, the adapter is the sum of their ΔW.
            base_model: a hub id or a folder of the language model; default: what is known of it.

        Raises:
            InputError: no image.
            ImageError: not a usable image.
            UnsupportedModel: the model uses a target that no adapter has a place for.
        """
        from .export.adapter import adapter_of

        images = _as_set(image)
        weights = self._weights([images])
        if weights is None:
            raise InputError("There is no image to make an adapter of: give at least one.")
        base = self._base = self._base or self._identify()  # the language model is frozen
        if base_model is not None:
            base = replace(base, name=base_model)
        return adapter_of(weights, base, images=[origin for one in images for origin in _origins(one)])

    def _identify(self) -> Base:
        """The language model as others know it: by what it was loaded from, if that is not a folder of ours."""
        from .export.adapter import base_of

        if self.name == "nano":
            from .nano.parts import LANGUAGE_MODEL_FORM, LANGUAGE_MODEL_NAME

            return base_of(self.model, name=LANGUAGE_MODEL_NAME, form=LANGUAGE_MODEL_FORM)
        return base_of(self.model, name=self.model.config.text_config._name_or_path or None)

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

    def tokens(self, questions: Sequence[str], images: Sequence[int] | None = None) -> Any:
        """Prompts of one user turn each, padded on the left: `input_ids` and `attention_mask`.

        Args:
            questions: what the user asks.
            images: how many each question is about; default: one.

        Raises:
            InputError: an empty question.
        """
        if not questions:
            raise InputError("There is no question: give at least one.")
        counts = images or [1] * len(questions)
        prompts = [render(question, self.processor, count) for question, count in zip(questions, counts, strict=True)]
        tokenizer = self.processor.tokenizer
        inputs = tokenize(prompts, tokenizer, return_tensors="pt", padding=True, padding_side="left")
        return {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def _weights(self, sets: Sequence[Sequence[Any]]) -> PerceptualWeights | None:
        """Weights of a batch of questions, each about a set of images; looks at each distinct image once."""
        distinct = {_key(image): image for images in sets for image in images}
        if not distinct:
            return None
        ends = list(accumulate(_images(image) for image in distinct.values()))
        numbers = {
            key: range(end - _images(image), end) for (key, image), end in zip(distinct.items(), ends, strict=True)
        }
        index = [[number for image in images for number in numbers[_key(image)]] for images in sets]
        width = max(1, *map(len, index))
        filled = torch.tensor([[*row, *[-1] * (width - len(row))] for row in index])
        with torch.inference_mode():
            weights = self._expand(list(distinct.values()))
            return weights.rows(filled)

    def _expand(self, images: Sequence[Seen]) -> PerceptualWeights:
        """Weights of what is looked at, in its order; pixels are looked at, and parameters expanded, in one batch."""
        pixels = [one for one in images if not isinstance(one, VisualParameters | PerceptualWeights)]
        looked = iter(self.perceive(pixels).values.split(1)) if pixels else iter(())  # type: ignore[arg-type]
        parts = [
            one if isinstance(one, VisualParameters | PerceptualWeights) else VisualParameters(next(looked))
            for one in images
        ]
        parameters = [part for part in parts if isinstance(part, VisualParameters)]
        expanded: Iterator[PerceptualWeights] = iter(())
        if parameters:
            weights = self.model.model.worn_form(self.model.expand(VisualParameters.stack(parameters)))
            expanded = iter(weights.split([len(part) for part in parameters]))
        return PerceptualWeights.stack(
            [part if isinstance(part, PerceptualWeights) else next(expanded) for part in parts]
        )


def _sets(image: Any, question: str | Sequence[str]) -> list[list[Any]]:
    """The images of each question: none, one or several."""
    if isinstance(question, str):
        return [_as_set(image)]
    if not isinstance(image, list | tuple):
        return [_as_set(image)] * len(question)
    images = cast("Sequence[Any]", image)
    if len(images) != len(question):
        raise InputError(
            f"There are {len(images)} images and {len(question)} questions: give one image for all questions, or one "
            "each; several images of one question are a list of their own."
        )
    return [_as_set(one) for one in images]


def _as_set(image: Any) -> list[Any]:
    several = isinstance(image, list | tuple)
    return [one for one in (cast("Sequence[Any]", image) if several else [image]) if one is not None]


def _images(image: Any) -> int:
    """How many images one thing to look at stands for: of what was perceived already, its batch."""
    return len(image) if isinstance(image, VisualParameters | PerceptualWeights) else 1


def _origins(image: Any) -> list[Origin]:
    """What tells later which images an adapter is of."""
    from .export.adapter import Origin, tensor_origin

    if isinstance(image, VisualParameters):
        return [tensor_origin("visual parameters", sample) for sample in image.values]
    if isinstance(image, PerceptualWeights):
        return [tensor_origin("perceptual weights", sample) for sample in image.values]
    return [Origin("pixels", image_hash(image))]


def _key(image: Seen) -> str | int:
    """What tells images apart: a path by its name, anything else by being itself."""
    return str(image) if isinstance(image, str | Path) else id(image)


class _Stop(StoppingCriteria):
    """Ends a generation when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)
