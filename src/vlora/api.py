"""The public face: `load` gives eyes, eyes answer questions about images."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from transformers import AutoProcessor, AutoTokenizer, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from .data.images import ImageLike, open_image
from .data.prompts import render
from .errors import CheckpointError, InputError, ModelNotFound
from .model import PerceptualWeights, VisualParameters, VLoRAForConditionalGeneration, VLoRAProcessor, register
from .model.assemble import (
    PARTS_FILE,
    load_generator,
    load_image_processor,
    load_language_model,
    load_vision_tower,
    read_parts,
)

Seen = ImageLike | VisualParameters | PerceptualWeights | None


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
        images = list(image) if isinstance(image, list | tuple) else [image]
        if not images:
            raise InputError("There is no image to look at: give at least one.")
        pixels = self.processor.image_processor([open_image(i) for i in images], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return self.model.perceive(pixels.to(self.model.device))

    @overload
    def ask(self, image: Seen, question: str, *, max_new_tokens: int = ..., **options: Any) -> str: ...
    @overload
    def ask(
        self, image: Seen | Sequence[Seen], question: Sequence[str], *, max_new_tokens: int = ..., **options: Any
    ) -> list[str]: ...
    def ask(
        self,
        image: Seen | Sequence[Seen],
        question: str | Sequence[str],
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
            ids = self.model.generate(
                **inputs,
                perceptual_weights=weights,
                max_new_tokens=max_new_tokens,
                **{"do_sample": False, "pad_token_id": self.processor.tokenizer.pad_token_id, **options},
            )
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
        weights = self._weights(image, 1)
        inputs = self.tokens([question])
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop, failure = threading.Event(), list[BaseException]()

        def work() -> None:
            try:
                with torch.inference_mode():
                    self.model.generate(
                        **inputs,
                        perceptual_weights=weights,
                        max_new_tokens=max_new_tokens,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
                        **{"do_sample": False, "pad_token_id": self.processor.tokenizer.pad_token_id, **options},
                    )
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
        images = list(image) if isinstance(image, list | tuple) else [image] * rows
        if len(images) != rows:
            raise InputError(
                f"There are {len(images)} images and {rows} questions: give one image for all questions, or one each."
            )
        distinct: dict[int, Seen] = {id(i): i for i in images if i is not None}
        if not distinct:
            return None
        positions = {key: position for position, key in enumerate(distinct)}
        with torch.inference_mode():
            weights = self._expand(list(distinct.values()))
            index = torch.tensor([-1 if i is None else positions[id(i)] for i in images])
            return weights.rows(index.to(weights.values.device))

    def _expand(self, images: Sequence[Seen]) -> PerceptualWeights:
        """Weights of distinct images, in their order; pixels are looked at in one batch."""
        pixels = [i for i in images if not isinstance(i, VisualParameters | PerceptualWeights)]
        looked = iter(self.perceive(pixels)[[n]] for n in range(len(pixels))) if pixels else iter(())  # type: ignore[arg-type]
        parts: list[PerceptualWeights] = []
        for image in images:
            if not isinstance(image, PerceptualWeights):
                image = self.model.expand(image if isinstance(image, VisualParameters) else next(looked))
            if len(image) != 1:
                raise InputError(
                    f"A question takes one image; these visual parameters hold {len(image)}: pick one, as in seen[0]."
                )
            parts.append(self.model.model.worn_form(image))
        return PerceptualWeights.stack(parts)


class _Stop(StoppingCriteria):
    """Ends a generation when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def load(
    name: str | Path = "nano",
    *,
    language_model: str | Path | None = None,
    vision: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Eyes:
    """Load a model with its processor.

    Args:
        name: `nano` (the embedded model), a folder with a full or a generator-only checkpoint, or a hub id.
        language_model: for a generator-only checkpoint, where its language model is; default: where it was.
        vision: likewise, its vision encoder.
        device: default: a GPU if there is one.

    Raises:
        ModelNotFound: no such name or folder.
        CheckpointError: weights missing, damaged, or for other models.
        MissingDependency: the parts of `nano` are not installed.
    """
    register()
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = Path(__file__).parent / "nano" if str(name) == "nano" else Path(name)
    if (folder / PARTS_FILE).is_file():
        model, processor = _load_with_parts(folder, language_model, vision)
    else:
        model, processor = _load_full(name, folder)
    return Eyes(model.to(target), processor, name=str(name))  # type: ignore[arg-type]


def _load_with_parts(
    folder: Path, language_model: str | Path | None, vision: str | Path | None
) -> tuple[VLoRAForConditionalGeneration, VLoRAProcessor]:
    parts = read_parts(folder)
    llm_source = language_model or parts.language_model.source
    vision_source = vision or parts.vision.source
    causal_lm, tokenizer = language_model_and_tokenizer(llm_source)
    model = load_generator(folder, causal_lm=causal_lm, vision_tower=vision_tower(vision_source, folder))
    template = folder / "chat_template.jinja"
    processor = VLoRAProcessor(
        image_processor=load_image_processor(folder),
        tokenizer=tokenizer,
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else tokenizer.chat_template,
        image_token=model.config.image_token,
        image_placeholder=model.config.image_placeholder,
    )
    return model, processor


def language_model_and_tokenizer(source: str | Path) -> tuple[Any, Any]:
    """A language model with its head, and its tokenizer; `nano` is SmolLM2-135M-Instruct."""
    if str(source) == "nano":
        from .nano.parts import language_model_folder

        source = language_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return load_language_model(source), tokenizer


def vision_tower(source: str | Path, config: str | Path | None = None) -> Any:
    """A vision encoder; `nano` is EfficientNet-Lite0, with the features that the checkpoint in `config` uses."""
    if str(source) != "nano":
        return load_vision_tower(source)
    from .model import VLoRAConfig
    from .nano.vision import load_encoder

    return load_encoder(VLoRAConfig.from_pretrained(config).vision_config if config else None)


def _load_full(name: str | Path, folder: Path) -> tuple[VLoRAForConditionalGeneration, VLoRAProcessor]:
    if not (folder / "config.json").is_file() and (folder.exists() or len(str(name).split("/")) != 2):
        found = "a folder without a config.json" if folder.is_dir() else "neither a folder nor a known name"
        raise ModelNotFound(
            f"There is no model {str(name)!r} ({found}): give 'nano', a folder with a checkpoint, or a hub id as owner/name."
        )
    try:
        model, info = VLoRAForConditionalGeneration.from_pretrained(name, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(name)
    except OSError as error:
        raise ModelNotFound(
            f"The model {str(name)!r} could not be loaded: its weights are missing or it is not on the hub; "
            "give 'nano', a folder with a checkpoint, or a hub id."
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(
            f"The checkpoint {str(name)!r} lacks {missing[0]!r} and {len(missing) - 1} more: get it again."
        )
    return model.eval(), processor
