"""The processor of a converted checkpoint: prompts and pixels as the authors' code makes them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, CLIPImageProcessorPil, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from ..errors import CheckpointError, MissingDependency, UnsupportedModel
from ..model import VLoRAProcessor
from .source import Source, read_json

IMAGE = "<image>"
TEMPLATE = Path(__file__).parent / "vicuna_v1.jinja"


def processor_of(source: Source) -> VLoRAProcessor:
    """The processor of the converted checkpoint, whose prompts are cut into tokens as the authors' code cuts them.

    Raises:
        CheckpointError: the tokenizer cannot be read, or cuts otherwise.
        MissingDependency: it needs a library that is not installed.
    """
    tokenizer = _tokenizer(source)
    template = TEMPLATE.read_text(encoding="utf-8")
    processor = VLoRAProcessor(
        image_processor=_image_processor(source), tokenizer=tokenizer, chat_template=template, image_placeholder="mask"
    )
    prompt = f"Look. USER: {IMAGE}\nWhat is it? ASSISTANT:"
    # Sentencepiece writes a space before a text; the authors give it the text behind an image as a text of its own.
    for place in ("\n", " \n"):
        if tokenizer(prompt.replace("\n", place))["input_ids"] == _in_pieces(prompt, tokenizer):
            processor.chat_template = template.replace(f'"{IMAGE}\\n"', json.dumps(IMAGE + place))
            return processor
    raise CheckpointError(
        f"The tokenizer of {source.folder} cuts the text around {IMAGE} otherwise than the authors' code does: "
        "get the tokenizer that belongs to the checkpoint."
    )


def _in_pieces(prompt: str, tokenizer: Any) -> list[int]:
    """Token ids as the authors make them: of what stands before and behind an image, each on its own."""
    first, *rest = (tokenizer(piece)["input_ids"] for piece in prompt.split(IMAGE))
    begins = bool(first) and first[0] == tokenizer.bos_token_id
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    return [*first, *(token for piece in rest for token in (image, *piece[begins:]))]


def _tokenizer(source: Source) -> Any:
    files = ("tokenizer.json", "tokenizer.model")
    folders = [folder for folder in (source.folder, source.language_model) if folder is not None]
    folder = next((folder for folder in folders if any((folder / file).is_file() for file in files)), None)
    if folder is None:
        raise CheckpointError(f"There is no {' or '.join(files)} in {folders[-1]}: get the tokenizer too.")
    if not (folder / files[0]).is_file() and find_spec("sentencepiece") is None:
        raise MissingDependency(
            f"{folder / files[1]} needs sentencepiece to be read: `pip install sentencepiece protobuf`."
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing more special
        raise CheckpointError(f"The tokenizer in {folder} cannot be read: get it again.") from error
    # As it is now, and not to be made anew from a class and its options, of which a saved one loses some.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,  # which destroys what byte-level tokenizers write
    )


def _image_processor(source: Source) -> Any:
    """CLIP's own, or one that pads to a square of its mean colour first."""
    settings: dict[str, Any] = read_json(source.vision / "preprocessor_config.json")
    kinds = [settings.pop(name, None) for name in ("image_processor_type", "feature_extractor_type", "processor_class")]
    if not any(str(kind).startswith("CLIP") for kind in kinds):
        raise UnsupportedModel(
            f"{source.vision / 'preprocessor_config.json'} is not of a CLIPImageProcessor: "
            "the authors' code knows CLIP only, pass its folder."
        )
    try:
        if source.fields.get("image_aspect_ratio") == "pad":
            settings["do_pad"] = True
            return LlavaImageProcessorPil(**settings)
        return CLIPImageProcessorPil(**settings)
    except Exception as error:  # transformers and its checks raise many
        raise CheckpointError(f"{source.vision / 'preprocessor_config.json'} is damaged: get it again.") from error
