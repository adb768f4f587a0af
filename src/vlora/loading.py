"""`load`: from a name or a folder to eyes. Whatever is wrong with a checkpoint is one sentence."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoProcessor, AutoTokenizer, PreTrainedConfig

from .api import Eyes
from .errors import CheckpointError, InputError, ModelNotFound, UnsupportedModel, VLoRAError
from .model import VLoRAConfig, VLoRAForConditionalGeneration, VLoRAProcessor, register
from .model.assemble import (
    GENERATOR_FILE,
    PARTS_FILE,
    load_generator,
    load_image_processor,
    load_language_model,
    load_vision_tower,
    read_parts,
)

NANO = "nano"


def load(
    name: str | Path = NANO,
    *,
    language_model: str | Path | None = None,
    vision: str | Path | None = None,
    device: str | torch.device | None = None,
    views: int | None = None,
) -> Eyes:
    """Load a model with its processor.

    Args:
        name: `nano` (the embedded model), a folder with a full or a generator-only checkpoint, or a hub id.
        language_model: for a generator-only checkpoint, where its language model is; default: where it was.
        vision: likewise, its vision encoder.
        device: default: a GPU if there is one.
        views: look at an image so many times, with the first of the model's own `VLoRAConfig.views`; default: all.

    Raises:
        InputError: more views than the model has, or none.
        ModelNotFound: no such name or folder.
        CheckpointError: weights missing, damaged, or for other models.
        UnsupportedModel: a model of another kind.
        MissingDependency: the parts of `nano` are not installed.
    """
    register()
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = Path(__file__).parent / "nano" if str(name) == NANO else Path(name)
    if str(name) == NANO or (folder / PARTS_FILE).is_file():
        model, processor = _load_with_parts(folder, language_model, vision)
    else:
        model, processor = _load_full(str(name), folder)
    if views is not None:
        _look_less(model.config, views)
    return Eyes(model.to(target), processor, name=str(name))  # type: ignore[arg-type]


def _look_less(config: VLoRAConfig, views: int) -> None:
    if not 1 <= views <= len(config.views):
        raise InputError(
            f"{views} views of an image are not possible: give 1 to {len(config.views)}, as many as this model has."
        )
    config.views = config.views[:views]


@dataclass(frozen=True)
class TextProcessor:
    """What renders conversations: the part of a processor that needs no image.

    Args:
        tokenizer: the language model's.
        chat_template: Jinja; None keeps the tokenizer's.
        image_token: as in `VLoRAProcessor`.
        image_placeholder: as in `VLoRAConfig`.
    """

    tokenizer: Any
    chat_template: str | None
    image_token: str = "<image>"
    image_placeholder: str = "erase"


def text_processor(
    language_model: str | Path, *, checkpoint: str | Path | None = None, chat_template: str | None = None
) -> TextProcessor:
    """A tokenizer and a template, without loading a model.

    Args:
        language_model: `nano`, a folder or a hub id.
        checkpoint: a VLoRA checkpoint whose tokenizer and template come first.
        chat_template: comes before all others.

    Raises:
        ModelNotFound: no such model.
        CheckpointError: damaged files.
    """
    if checkpoint is None:
        tokenizer = tokenizer_of(language_model)
        return TextProcessor(tokenizer, chat_template or tokenizer.chat_template)
    folder = Path(checkpoint)
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"There is no checkpoint {str(checkpoint)!r}: give a folder with a VLoRA checkpoint.")
    in_parts = (folder / PARTS_FILE).is_file()
    tokenizer = tokenizer_of(read_parts(folder).language_model.source if in_parts else folder)
    with _one_sentence(f"The checkpoint {str(checkpoint)!r}"):
        config = VLoRAConfig.from_pretrained(folder)
        template = folder / "chat_template.jinja"
        own = template.read_text(encoding="utf-8") if template.is_file() else tokenizer.chat_template
    return TextProcessor(tokenizer, chat_template or own, config.image_token, config.image_placeholder)


def tokenizer_of(source: str | Path) -> Any:
    """The tokenizer of a language model; `nano` is SmolLM2-135M-Instruct.

    Raises:
        ModelNotFound: no such model.
        CheckpointError: damaged files.
    """
    if str(source) != NANO and not Path(source).exists() and len(str(source).split("/")) != 2:
        raise ModelNotFound(f"There is no language model {str(source)!r}: give {NANO!r}, a folder, or a hub id.")
    source = _place_of(source)
    with _one_sentence(f"The tokenizer of {str(source)!r}"):
        return _padding(AutoTokenizer.from_pretrained(source))


def language_model_and_tokenizer(source: str | Path) -> tuple[Any, Any]:
    """A language model with its head, and its tokenizer; `nano` is SmolLM2-135M-Instruct.

    Raises:
        ModelNotFound: no such model.
        UnsupportedModel: a family that cannot wear weights.
        CheckpointError: damaged files.
    """
    source = _place_of(source)
    with _one_sentence(f"The language model {str(source)!r}"):
        return load_language_model(source), _padding(AutoTokenizer.from_pretrained(source))


def _place_of(language_model: str | Path) -> str | Path:
    """Where a language model is: that of `nano` in the cache."""
    if str(language_model) != NANO:
        return language_model
    from .nano.parts import language_model_folder

    return language_model_folder()


def _padding(tokenizer: Any) -> Any:
    """A tokenizer that can pad."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_with_parts(
    folder: Path, language_model: str | Path | None, vision: str | Path | None
) -> tuple[VLoRAForConditionalGeneration, VLoRAProcessor]:
    # All that is small is read first: a damaged checkpoint is told before half a gigabyte is loaded for it.
    parts = read_parts(folder)
    for file in (GENERATOR_FILE, "config.json"):
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder / file} is missing: get the checkpoint again.")
    with _one_sentence(f"The checkpoint {str(folder)!r}"):
        config = VLoRAConfig.from_pretrained(folder)
        image_processor = load_image_processor(folder)
    causal_lm, tokenizer = language_model_and_tokenizer(language_model or parts.language_model.source)
    tower = _vision_tower(vision or parts.vision.source, config)
    model = load_generator(folder, causal_lm=causal_lm, vision_tower=tower)
    template = folder / "chat_template.jinja"
    processor = VLoRAProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else tokenizer.chat_template,
        image_token=config.image_token,
        image_placeholder=config.image_placeholder,
    )
    return model, processor


def _vision_tower(source: str | Path, config: VLoRAConfig) -> Any:
    """A vision encoder; `nano` is the EfficientNet-Lite, with the features, that the checkpoint uses."""
    if str(source) == NANO:
        from .nano.vision import load_encoder

        return load_encoder(config.vision_config)
    with _one_sentence(f"The vision encoder {str(source)!r}"):
        return load_vision_tower(source)


def _load_full(name: str, folder: Path) -> tuple[VLoRAForConditionalGeneration, VLoRAProcessor]:
    _check_is_vlora(name, folder)
    with _one_sentence(f"The checkpoint {name!r}"):
        loaded: Any = VLoRAForConditionalGeneration.from_pretrained(name, output_loading_info=True)
        model, info = loaded
        processor = AutoProcessor.from_pretrained(name)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise CheckpointError(f"The checkpoint {name!r} lacks {missing[0]!r}{more}: get it again.")
    return model.eval(), processor


def _check_is_vlora(name: str, folder: Path) -> None:
    """Look at the model type first: another model's config would be read as one of ours, with parts of 7B."""
    advice = f"give {NANO!r}, a folder with a checkpoint, or a hub id as owner/name"
    if not (folder / "config.json").is_file() and (folder.exists() or len(name.split("/")) != 2):
        found = "a folder without a config.json" if folder.is_dir() else "neither a folder nor a known name"
        raise ModelNotFound(f"There is no model {name!r} ({found}): {advice}.")
    try:
        fields, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        found = "its config.json is damaged" if folder.is_dir() else "it is neither here nor on the hub"
        raise ModelNotFound(f"There is no model {name!r} ({found}): {advice}.") from error
    kind = fields.get("model_type")
    if kind != VLoRAConfig.model_type:
        raise UnsupportedModel(
            f"{name!r} is a model of type {kind!r}, not a VLoRA checkpoint: {advice}; "
            "a language model becomes part of one by `vlora train`."
        )


@contextmanager
def _one_sentence(what: str) -> Generator[None]:
    """Turn what transformers and safetensors raise about damaged files into one sentence."""
    try:
        yield
    except VLoRAError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines[0] if lines else type(error).__name__).rstrip(".")[:200]
        raise CheckpointError(
            f"{what} cannot be loaded, a file is missing or damaged ({reason}): get it again."
        ) from error
