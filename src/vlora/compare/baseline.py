"""The visual-token baseline: transformers' LLaVA, made of the encoder and the language model that VLoRA is made of.

    model, processor = build_baseline(causal_lm=..., vision_tower=..., image_processor=..., tokenizer=...)
    input_ids, labels = expand_images(input_ids, labels, image_token_id=..., tokens_per_image=...)    # each text
    baseline_loss(model, batch).backward()                                                            # each step
    save_baseline("llava", model=model, processor=processor)

The parts are shared, not copied, and not changed; only the projector is new, as LLaVA has it, with torch's fresh
weights as in LLaVA's own training. A batch is one of VLoRA's, with places for visual tokens in its texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaProcessor, PreTrainedConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from ..errors import UnsupportedModel
from ..model.inject import check_supported
from ..model.vision import feature_shape, patch_count, takes_layers
from .llava import LlavaForConditionalGeneration
from .tokens import expand_images, with_image_token, with_images


def build_baseline(
    *,
    causal_lm: nn.Module,
    vision_tower: nn.Module,
    image_processor: Any,
    tokenizer: Any,
    feature_layer: int = -2,
    select: str = "default",
    chat_template: str | None = None,
    image_token: str | None = None,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Join a loaded language model and a loaded vision encoder by visual tokens.

    Args:
        causal_lm: with its head; becomes part of the model.
        vision_tower: the encoder; becomes part of the model.
        image_processor: the encoder's.
        tokenizer: the language model's; is left as it is.
        feature_layer: which hidden states are projected; `vision_feature_layer` of `VLoRAConfig`.
        select: `default` or `full`; `vision_feature_select_strategy` of `VLoRAConfig`.
        chat_template: Jinja; None keeps the tokenizer's.
        image_token: the token that keeps the places; None chooses, see `with_image_token`.

    Returns:
        The model, and its processor. The latter names an image in a rendered text by `image_token`, one token each,
        which `expand_images` repeats for training.

    Raises:
        UnsupportedModel: parts that LLaVA cannot hold.
    """
    text: Any = causal_lm.config
    check_supported(text.model_type)
    if getattr(text, "final_logit_softcapping", None) is not None:
        raise UnsupportedModel(
            f"A language model of type {text.model_type!r} caps its logits, for which LLaVA has no place: choose one "
            "that does not, such as llama, qwen3 or gemma3_text."
        )
    vision: Any = vision_tower.config
    layer, strategy = _selection(vision, feature_layer, select)
    tokens = feature_shape(vision, select=select)[0]
    template = chat_template or tokenizer.chat_template
    tokenizer, token = with_image_token(tokenizer, rows=text.vocab_size, chat_template=template, wanted=image_token)
    attention = [part._attn_implementation for part in (text, vision)]
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(token),
        image_seq_length=tokens,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )
    model = _joined(config, causal_lm, vision_tower)
    for part, chosen in zip((text, vision), attention, strict=True):
        if chosen is not None:  # a configuration that others become part of resets what they run
            part._attn_implementation = chosen
    return model, _processor(config, image_processor, tokenizer, token=token, template=template)


def baseline_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss of a training step, by the function that VLoRA is trained with.

    Args:
        model: of `build_baseline`, also inside what distributes it.
        batch: `input_ids`, `attention_mask` and `labels` `[rows, text]`, with the places of visual tokens, padded on
            either side; `pixel_values [image, 3, height, width]` if there are images; `image_index [rows, images]` if
            the rows do not share them out evenly; `loss_weights [rows]` if they do not count the same.
    """
    return model(**batch, supervised_only=True, use_cache=False).loss


def save_baseline(
    folder: str | Path,
    *,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a LLaVA checkpoint, which transformers loads by itself.

    With the encoder of `nano`, which transformers does not have, after `import vlora`.

    Args:
        folder: made if need be.
        model: the trained baseline.
        processor: its processor.
        dtype: precision of the stored weights; None keeps theirs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = model.state_dict()
    if dtype is not None:
        cast: dict[int, Tensor] = {}  # what is tied stays one tensor
        state = {name: cast.setdefault(tensor.data_ptr(), _cast(tensor, dtype)) for name, tensor in state.items()}
    model.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)
    _forget_origins(folder / "config.json", dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _forget_origins(path: Path, dtype: torch.dtype | None) -> None:
    """Leave out the folders that the parts were loaded from, and say the precision that is stored."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    for part in (fields, *(value for value in fields.values() if isinstance(value, dict))):
        part.pop("_name_or_path", None)
        if dtype is not None:
            part["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _selection(vision: PreTrainedConfig, feature_layer: int, select: str) -> tuple[int, Literal["default", "full"]]:
    """LLaVA's names for the features that VLoRA would take: it drops one position before the patches, or none."""
    if not takes_layers(vision):
        return -1, "full"
    if select == "full":
        return feature_layer, "full"
    before = feature_shape(vision, select="full")[0] - patch_count(vision)
    if before > 1:
        raise UnsupportedModel(
            f"A vision encoder of type {vision.model_type!r} has {before} positions before its patches, of which LLaVA "
            "can drop one: keep them all for both models with vision_feature_select_strategy: full."
        )
    return feature_layer, "default" if before else "full"


def _joined(config: LlavaConfig, causal_lm: Any, vision_tower: nn.Module) -> LlavaForConditionalGeneration:
    """A LLaVA made without memory for weights, then given those that are there."""
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    model.model.vision_tower = vision_tower
    model.model.language_model = causal_lm.model
    model.model.multi_modal_projector = LlavaMultiModalProjector(config)
    model.lm_head = causal_lm.lm_head
    model.generation_config = causal_lm.generation_config
    return model.eval()


def _processor(config: Any, image_processor: Any, tokenizer: Any, *, token: str, template: str | None) -> Any:
    vision, strategy = config.vision_config, config.vision_feature_select_strategy
    size, patch = _side(vision.image_size), _side(getattr(vision, "patch_size", getattr(vision, "stride", 1)))
    dropped = 1 if strategy == "default" else 0
    processor: Any = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        # What the processor's own formula does not count: a class token, registers, patches cut off at the edge.
        num_additional_image_tokens=config.image_seq_length - (size // patch) ** 2 + dropped,
        chat_template=template if template is None else with_images(template, tokenizer, token),
        image_token=token,
    )
    processor.image_placeholder = "mask"  # as VLoRA's processor says that an image is named in the rendered text
    return processor


def _side(size: int | list[int] | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else int(size[0])


__all__ = ["baseline_loss", "build_baseline", "expand_images", "save_baseline"]
