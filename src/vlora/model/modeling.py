"""1-4 joined: VLoRAModel and VLoRAForConditionalGeneration.

The layout is that of every vision-language model of transformers: `.model` (vision tower, generator, language
model; returns hidden states) and `.lm_head`. What differs: an image adds no token. Its weights are computed once,
and travel as the argument `perceptual_weights`, because a decoding step needs them as much as the prompt does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast

from ..errors import InputError
from .configuration import VLoRAConfig
from .generator import PerceptualWeightsGenerator
from .inject import Wearer, check_supported, find_places, for_reentrant_checkpointing
from .loss import supervised_loss
from .merge import merge, unmerge
from .packing import packing_of
from .vision import encode, feature_shape, shifted
from .weights import PerceptualWeights, VisualParameters

_IMAGES_IN_A_PASS = 32
"""Views that go through the encoder together, unless there are more images than that."""


@dataclass
class VLoRAModelOutput(BaseModelOutputWithPast):
    """Hidden states, and the weights that were worn (`[samples, numel]`, see `PerceptualWeights.values`)."""

    perceptual_weights: Tensor | None = None


@dataclass
class VLoRAOutput(CausalLMOutputWithPast):
    """Loss and logits, and the weights that were worn (`[samples, numel]`, see `PerceptualWeights.values`)."""

    perceptual_weights: Tensor | None = None


class VLoRAPreTrainedModel(PreTrainedModel):
    """What transformers must know of both classes."""

    config: VLoRAConfig
    config_class = VLoRAConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["PerceptualWeightsGenerator"]  # those of the two other parts are added to it
    _skip_keys_device_placement = ["past_key_values"]
    # The generator stays in float32 in a model that is loaded in half precision, and is never quantised. Two names,
    # for it is looked up from the root of either class.
    _keep_in_fp32_modules = ["generator", "model.generator"]
    _keep_in_fp32_modules_strict = ["generator", "model.generator"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PerceptualWeightsGenerator):
            module.reset_parameters()
        elif not getattr(module, "_inside_generator", False):
            super()._init_weights(module)


class VLoRAModel(VLoRAPreTrainedModel):
    """Vision tower, generator and language model, without the language model's head.

    Args:
        config: sizes of all parts.
        vision_tower: a loaded encoder of `config.vision_config`; None makes a fresh one.
        language_model: a loaded decoder of `config.text_config`; None makes a fresh one.
    """

    def __init__(
        self, config: VLoRAConfig, vision_tower: nn.Module | None = None, language_model: nn.Module | None = None
    ) -> None:
        super().__init__(config)
        check_supported(config.text_config.model_type)
        self.vision_tower: Any = _loaded(vision_tower) or AutoModel.from_config(config.vision_config)
        self.language_model: Any = _loaded(language_model) or AutoModel.from_config(config.text_config)
        generator = config.generator_config
        layers = generator.worn_layers(config.text_config.num_hidden_layers)
        patches, vision_dim = feature_shape(config.vision_config, select=config.vision_feature_select_strategy)
        self.generator = PerceptualWeightsGenerator(
            generator,
            vision_dim=vision_dim,
            patches=patches,
            places=find_places(self.language_model, generator.targets, layers),
        )
        for module in self.generator.children():  # the generator initialises its own parts
            for part in module.modules():
                part._inside_generator = True  # type: ignore[assignment]
        self._unmerged: dict[str, Tensor] | None = None
        self.wearer = Wearer(self.language_model, self.generator.layout.places)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Features `[image, patch, vision_dim]` as `last_hidden_state`, visual parameters as `pooler_output`.

        The features are those of the first view, the visual parameters those of all (see `VLoRAConfig.views`).
        """
        features, seen = self._look(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=seen.values)

    def perceive(self, pixel_values: Tensor) -> VisualParameters:
        """`[image, 3, height, width]` -> visual parameters, one sample per image: the mean over `VLoRAConfig.views`.

        Raises:
            InputError: the generator is offloaded, or the images are of another size.
        """
        if self.generator.positions.is_meta and not pixel_values.is_meta:
            raise InputError(
                "The generator is offloaded, which it cannot be, as every worn layer reads it: give "
                '"model.generator" a device of its own in device_map.'
            )
        return self._look(pixel_values)[1]

    def expand(self, visual_parameters: VisualParameters) -> PerceptualWeights:
        """Visual parameters -> perceptual weights."""
        return self.generator.expand(visual_parameters)

    def worn_form(self, weights: PerceptualWeights) -> PerceptualWeights:
        """Weights in the precision they are worn in.

        On a GPU that of the language model. On a CPU that of the generator: there a batched matmul of this shape
        is 10 to 25 times slower in bfloat16 than in float32.
        """
        dtype = next(self.language_model.parameters()).dtype
        if weights.values.device.type == "cpu" or not dtype.is_floating_point:
            return weights
        return weights.to(dtype)

    def perceptual_weights(self, pixel_values: Tensor, image_index: Tensor | None, rows: int) -> PerceptualWeights:
        """Look at each image once, and give each row of text its weights.

        Args:
            pixel_values: `[image, 3, height, width]`.
            image_index: `[rows]` or `[rows, images]`, the images of each row, -1 for none; a row wears the sum of
                the ΔW of its images. None means that the rows are in the order of the images, each image with the
                same number of consecutive rows. Where all rows of a `[rows, images]` count their images from 0 and
                have all images between them, they were joined after they had been prepared, and are counted through.
            rows: rows of text.

        Raises:
            InputError: images and rows that do not fit.
        """
        weights = self.worn_form(self.expand(self.perceive(pixel_values)))
        if image_index is None:
            if rows % len(weights):
                raise InputError(
                    f"{len(weights)} images cannot be shared out evenly to {rows} rows of text; "
                    "give image_index, the images of each row (-1 for none)."
                )
            return weights
        if image_index.ndim not in (1, 2) or len(image_index) != rows or not image_index.numel():
            raise InputError(
                f"image_index must have the shape [{rows}] or [{rows}, images], an entry for each row of text; "
                f"got {tuple(image_index.shape)}."
            )
        if not -1 <= int(image_index.min()) <= int(image_index.max()) < len(weights):
            raise InputError(
                f"image_index names images from {int(image_index.min())} to {int(image_index.max())}; "
                f"there are {len(weights)}, counted from 0, and -1 is none."
            )
        image_index = _through_the_batch(image_index, len(weights))
        return weights.rows(image_index)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: Tensor | None = None,
        image_index: Tensor | None = None,
        perceptual_weights: Tensor | PerceptualWeights | None = None,
        **kwargs: Any,
    ) -> VLoRAModelOutput:
        """Hidden states of the text, read by a language model that wears the images.

        Args:
            input_ids: `[rows, text]`.
            pixel_values: `[image, 3, height, width]`, if the images are to be looked at now.
            attention_mask: `[rows, text]`.
            position_ids: as in the language model.
            past_key_values: as in the language model.
            inputs_embeds: `[rows, text, hidden]` in place of `input_ids`.
            image_index: `[rows]` or `[rows, images]`, see `perceptual_weights()`.
            perceptual_weights: weights in place of `pixel_values`; as a tensor `[samples, numel]`, see
                `PerceptualWeights.values`. Rows must be a multiple of samples; consecutive rows share one.
            **kwargs: passed on to the language model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("Give exactly one of input_ids and inputs_embeds.")
        rows = len(input_ids if input_ids is not None else inputs_embeds)  # type: ignore[arg-type]
        if perceptual_weights is None and pixel_values is not None and len(pixel_values):
            perceptual_weights = self.perceptual_weights(pixel_values, image_index, rows)
        places = self.config.image_placeholder == "mask"
        if places and input_ids is not None and _is_prompt(input_ids, attention_mask, past_key_values):
            input_ids, attention_mask, position_ids = self.hide_images(input_ids, attention_mask, position_ids)
        weights = self._as_weights(perceptual_weights, rows)
        if weights is not None and self._checkpoints_reentrantly(weights):
            embeds = inputs_embeds if inputs_embeds is not None else self.get_input_embeddings()(input_ids)
            inputs_embeds, leaf = for_reentrant_checkpointing(embeds, weights.values)
            input_ids, weights = None, PerceptualWeights(leaf, weights.layout, weights.shared)
        if weights is not None:
            kwargs["perceptual_weights"] = weights
        outputs = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if weights is None and self.training:
            hidden = self._touch_unused(hidden)
        return VLoRAModelOutput(
            last_hidden_state=hidden,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            perceptual_weights=None if weights is None else weights.values,
        )

    def hide_images(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask the places of images in a text out, as the authors do (`image_placeholder: mask`).

        Such a place holds token 0, is attended to by no other, and keeps its position number.

        Returns:
            The three arguments, so changed.
        """
        image = input_ids == self.config.image_token_id
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp_min(0)
        return input_ids.masked_fill(image, 0), attention_mask.masked_fill(image, 0), position_ids

    def merge(self, weights: PerceptualWeights) -> None:
        """Make one image part of the language model's matrices, until `unmerge`.

        Whatever is worn meanwhile comes on top. Keeps a copy of every matrix that is changed.

        Raises:
            InputError: more than one sample, weights of another model, or a model that is merged already.
            UnsupportedModel: targets that are no matrices, quantised or wrapped linear layers.
        """
        if self._unmerged is not None:
            raise InputError("This model has an image merged into it already: unmerge it first.")
        self.check_own(weights)
        self._unmerged = merge(self.language_model, weights)

    @property
    def is_merged(self) -> bool:
        """Whether an image is part of the matrices, which are not those of the plain language model then."""
        return self._unmerged is not None

    def unmerge(self) -> None:
        """Restore every matrix that `merge` has changed, bit for bit.

        Raises:
            InputError: nothing is merged.
        """
        if self._unmerged is None:
            raise InputError("There is nothing to unmerge: no image is merged into this model.")
        unmerge(self.language_model, self._unmerged)
        self._unmerged = None

    def _touch_unused(self, hidden: Tensor) -> Tensor:
        """Give a batch without images a gradient of zero for what it would have looked with.

        Without it such a batch has nothing to train when the language model is frozen, and other processes, whose
        rows do have images, would wait for its gradients for ever.
        """
        parts = (*self.vision_tower.parameters(), *self.generator.parameters())
        entries = [parameter.reshape(-1)[:1].sum().to(hidden) for parameter in parts if parameter.requires_grad]
        return hidden + 0 * torch.stack(entries).sum() if entries else hidden

    def _look(self, pixel_values: Tensor) -> tuple[Tensor, VisualParameters]:
        """The features of the first view, and the mean of what is seen in all of them."""
        views = self.config.views[:1] if self.training else self.config.views
        images = len(pixel_values)
        # Few images share a pass; many do not, which takes a CPU longer and needs the memory of all views at once.
        passes = torch.cat([shifted(pixel_values, *view) for view in views]).split(max(images, _IMAGES_IN_A_PASS))
        looks = [self._features(part) for part in passes]
        seen = torch.cat([self.generator.perceive(features).values for features in looks])
        return looks[0][:images], VisualParameters(seen.unflatten(0, (len(views), images)).mean(0))

    def _features(self, pixel_values: Tensor) -> Tensor:
        config = self.config
        # A frozen encoder keeps no activations for a backward pass that will not come.
        trained = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return encode(
                self.vision_tower,
                pixel_values,
                feature_layer=config.vision_feature_layer,
                select=config.vision_feature_select_strategy,
            )

    def _as_weights(self, given: Tensor | PerceptualWeights | None, rows: int) -> PerceptualWeights | None:
        if given is None:
            return None
        weights = self.generator.weights_from(given) if isinstance(given, Tensor) else given
        self.check_own(weights)
        if len(weights) == 0 or rows % len(weights):
            raise InputError(
                f"{len(weights)} samples of perceptual weights cannot be shared out evenly to {rows} rows of text; "
                "give one sample per row."
            )
        return weights

    def check_own(self, weights: PerceptualWeights) -> None:
        """Refuse weights of another layout.

        Raises:
            InputError: their targets, layers or rank differ from this model's.
        """
        own = self.generator.layout
        if weights.layout not in (own, own.of(max(1, weights.layout.rank // own.rank))):
            raise InputError("These perceptual weights belong to another model: their targets, layers or rank differ.")

    def _checkpoints_reentrantly(self, weights: PerceptualWeights) -> bool:
        block = self.language_model.layers[0]
        if not (self.training and getattr(block, "gradient_checkpointing", False) and weights.values.requires_grad):
            return False
        function = getattr(block, "_gradient_checkpointing_func", None)
        return bool(getattr(function, "keywords", {}).get("use_reentrant", True))


def _through_the_batch(image_index: Tensor, images: int) -> Tensor:
    """Number the images through a batch whose rows were prepared one by one and joined later, as pipelines do.

    Each row then counts its own images from 0, and is filled up with 0 on the left. Read as it stands, such an index
    would show the first image to every row, and leave the others to none.
    """
    if image_index.ndim == 1 or len(image_index) == 1:
        return image_index
    counts = image_index.amax(1, keepdim=True) + 1
    own = torch.arange(image_index.shape[1], device=image_index.device) - (image_index.shape[1] - counts)
    if int(counts.sum()) != images or not torch.equal(own.clamp_min(0), image_index):
        return image_index
    return (own + counts.cumsum(0) - counts).where(own >= 0, -1)


def _is_prompt(input_ids: Tensor, attention_mask: Tensor | None, past_key_values: Any | None) -> bool:
    """Whether these ids are the text from its beginning, and no later step of a generation."""
    if attention_mask is not None:
        return attention_mask.shape == input_ids.shape
    return past_key_values is None or past_key_values.get_seq_length() == 0


def _loaded(module: nn.Module | None) -> nn.Module | None:
    """Keep transformers from giving fresh weights to a module that comes with its own."""
    for part in module.modules() if module is not None else ():
        part._is_hf_initialized = True  # type: ignore[assignment]
    return module


class VLoRAForConditionalGeneration(VLoRAPreTrainedModel, GenerationMixin):
    """A language model that sees through its weights.

    Args:
        config: sizes of all parts.
        vision_tower: a loaded encoder; None makes a fresh one.
        causal_lm: a loaded language model with its head (`LlamaForCausalLM`, ...), whose parts become this model's;
            None makes fresh ones.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: VLoRAConfig, vision_tower: Any = None, causal_lm: Any = None) -> None:
        super().__init__(config)
        text = config.text_config
        if causal_lm is None:
            self.model = VLoRAModel(config, vision_tower)
            self.lm_head: Any = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        else:
            self.model = VLoRAModel(config, vision_tower, causal_lm.model)
            self.lm_head = _loaded(causal_lm.lm_head)
            self.generation_config = causal_lm.generation_config
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `VLoRAModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def perceive(self, pixel_values: Tensor) -> VisualParameters:
        """See `VLoRAModel.perceive`."""
        return self.model.perceive(pixel_values)

    def expand(self, visual_parameters: VisualParameters) -> PerceptualWeights:
        """See `VLoRAModel.expand`."""
        return self.model.expand(visual_parameters)

    def merge(self, weights: PerceptualWeights) -> None:
        """See `VLoRAModel.merge`."""
        self.model.merge(weights)

    def unmerge(self) -> None:
        """See `VLoRAModel.unmerge`."""
        self.model.unmerge()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: Tensor | None = None,
        image_index: Tensor | None = None,
        perceptual_weights: Tensor | PerceptualWeights | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        supervised_only: bool = False,
        loss_weights: Tensor | None = None,
        **kwargs: Any,
    ) -> VLoRAOutput:
        """Logits of the text, and the loss if labels are given; see `VLoRAModel.forward` for the rest.

        Args:
            input_ids: `[rows, text]`.
            pixel_values: `[image, 3, height, width]`.
            attention_mask: `[rows, text]`.
            position_ids: as in the language model.
            past_key_values: as in the language model.
            inputs_embeds: `[rows, text, hidden]` in place of `input_ids`.
            image_index: `[rows]` or `[rows, images]`, the images of each row, -1 for none.
            perceptual_weights: weights in place of `pixel_values`.
            labels: `[rows, text]`, -100 where nothing is supervised.
            logits_to_keep: compute logits for the last so many positions only, 0 for all.
            supervised_only: compute logits for the supervised positions only, `[supervised, vocabulary]`, and the
                loss as a mean per row, then over rows, so that a long answer counts as much as a short one. Rows
                about one image are read together where that saves tokens, see `packing.py`.
            loss_weights: `[rows]`, with `supervised_only`: what each row counts, in place of the mean over rows.
            **kwargs: passed on to the language model and the loss.
        """
        decoder, packing = self.model.language_model, None
        regular = image_index is None and position_ids is None and self.config.image_placeholder != "mask"
        if supervised_only and regular and pixel_values is not None and input_ids is not None and labels is not None:
            packing = packing_of(decoder.config, input_ids, attention_mask, labels, images=len(pixel_values))
        if packing and input_ids is not None:
            input_ids, position_ids = packing.pack(input_ids), packing.position_ids
            attention_mask = packing.mask(decoder.config, decoder.dtype)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_index=image_index,
            perceptual_weights=perceptual_weights,
            **kwargs,
        )
        hidden, loss = outputs.last_hidden_state, None
        if packing:
            hidden = packing.unpack(hidden)
        if supervised_only and labels is not None:
            logits, loss = supervised_loss(hidden, labels, self._logits, loss_weights)
        else:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self._logits(hidden[:, keep])
            if labels is not None:
                vocabulary = self.config.text_config.vocab_size
                loss_function: Any = self.loss_function
                loss = loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **kwargs)
        return VLoRAOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            perceptual_weights=outputs.perceptual_weights,
        )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `generate`; images are looked at once, and worn for every step.

        `generate` passes `pixel_values` to the prompt only, where other models put the image into the cache. A
        worn image is needed at every step, so it is turned into `perceptual_weights` here.
        """
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if ids is not None and self.config.image_placeholder == "mask":
            # Here and not at every step: the mask and the positions that `generate` goes on counting must be right.
            hidden = self.model.hide_images(ids, kwargs.get("attention_mask"), kwargs.get("position_ids"))
            inputs = None
            kwargs |= dict(zip(("input_ids", "attention_mask", "position_ids"), hidden, strict=True))
        pixel_values, image_index = kwargs.pop("pixel_values", None), kwargs.pop("image_index", None)
        if pixel_values is not None and len(pixel_values) and kwargs.get("perceptual_weights") is None:
            text = next(x for x in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
            kwargs["perceptual_weights"] = self.model.perceptual_weights(pixel_values, image_index, len(text))
        weights = kwargs.get("perceptual_weights")
        if isinstance(weights, PerceptualWeights):
            self.model.check_own(weights)
            own = self.model.generator.weights_from(weights.values).shared
            if any(x is not own[place] and not torch.equal(x, own[place]) for place, x in weights.shared.items()):
                factor = weights.layout.shared.upper()
                raise InputError(f"generate wears this model's own {factor}; these perceptual weights have another.")
            kwargs["perceptual_weights"] = weights.values  # a tensor is repeated for beams and several answers
        return super().generate(inputs, *args, **kwargs)  # pyright: ignore

    def _get_candidate_generator(self, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """An assistant that cannot wear these weights drafts without them; this model decides what is written."""
        body = getattr(kwargs.get("assistant_model"), "model", None)
        if not isinstance(body, VLoRAModel) or body.generator.layout != self.model.generator.layout:
            given = kwargs["model_kwargs"]
            kwargs["model_kwargs"] = {name: value for name, value in given.items() if name != "perceptual_weights"}
        return super()._get_candidate_generator(**kwargs)  # pyright: ignore

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Number what is written as the authors' generation does, where an image keeps a masked place.

        Theirs counts the places of the prompt, and from there on the tokens that are attended to: the first token
        written gets the number of the last one of the prompt, if the prompt names one image.
        """
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)  # pyright: ignore
        positions, mask = updated.get("position_ids"), updated.get("attention_mask")
        # transformers drops a mask that masks nothing; then no image is named either.
        if self.config.image_placeholder == "mask" and positions is not None and mask is not None:
            new = kwargs.get("num_new_tokens", 1)
            updated["position_ids"] = torch.cat([positions[:, :-new], mask.long().cumsum(1)[:, -new:] - 1], dim=1)
        return updated

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.lm_head(hidden)
        cap = getattr(self.config.text_config, "final_logit_softcapping", None)  # Gemma 2
        return logits if cap is None else torch.tanh(logits / cap) * cap


__all__ = ["VLoRAForConditionalGeneration", "VLoRAModel", "VLoRAOutput"]
