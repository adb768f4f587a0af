"""What a VLoRA model is made of, as configuration: vision encoder, generator, language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from ..errors import ConfigError
from .weights import FACTORS, TARGETS

QUERY_MODES = ("separate", "joint")
HEADS = ("linear", "dictionary")
TRUNK_INITS = ("fixed", "scaled")
PLACEHOLDERS = ("erase", "mask")
ONE_VIEW = ((0, 0),)


class GeneratorConfig(PreTrainedConfig):
    """The perceptual weights generator (paper section 3.2, figure 2).

    The defaults are the authors' released 7B settings; `joint`, `dictionary`, `ab`, `static_rank`, `norms`
    and `scaled` go beyond them.

    Attributes:
        targets: places of a decoder block that get weights, any of `q k v o gate up down mlp`. All but `mlp`
            are real linear layers; `mlp` is the paper's `m` as its authors built it: a bypass from the MLP's
            input to its output, which can be neither merged nor exported.
        layers: decoder blocks (0-based) that wear weights; None means every `layer_step`-th, counted so that
            step 4 of 32 layers gives 3, 7, ..., 31.
        layer_step: see `layers`.
        rank: rank of the image's part of each ΔW.
        alpha: the update is scaled by `alpha / rank`.
        dim: width of the trunk.
        depth: blocks of (self-attention, cross-attention, MLP).
        heads: attention heads of the trunk; must divide `dim`.
        mlp_ratio: hidden width of the trunk's MLP over `dim`.
        queries: `separate`, a trunk per target (the authors' code), or `joint`, one trunk for all targets (the
            paper's drawing).
        head: how a code becomes a factor. `linear`: one linear layer per target, shared by its layers (the authors'
            code). `dictionary`: A = D C with D `[in_dim, dictionary_size]` learned for each (layer, target) and C
            from the image, which needs a fraction of the parameters.
        dictionary_size: atoms of a dictionary, the columns of D; not below the rank.
        factors: what the image makes. `a`: A, which reads, and B is learned (the paper). `b`: B, which writes, added to
            a learned one, and A is learned. `ab`: A, and it adds to B.
        static_rank: rank of a learned, image-independent pair beside the generated one (0: none).
        norms: normalise the features before their projection, and give each (layer, target) a learned scale.
        trunk_init: standard deviation of fresh linears before the heads. `fixed`: 0.02 (the authors' code). `scaled`:
            1/√inputs, so that a narrow trunk hands on what it reads: at width 256 and 0.02, a thousandth of what
            fresh codes are depends on the image.
        query_std: standard deviation of fresh queries and positions (1.0 in the authors' code).
        head_std: standard deviation of fresh weights of the heads that make A (0.02 in the authors' code).
    """

    model_type = "vlora_generator"
    base_config_key = "generator_config"

    targets: Sequence[str] = ("q", "k", "v", "o", "mlp")
    layers: Sequence[int] | None = None
    layer_step: int = 4
    rank: int = 64
    alpha: float = 64.0
    dim: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    queries: str = "separate"
    head: str = "linear"
    dictionary_size: int = 256
    factors: str = "a"
    static_rank: int = 0
    norms: bool = False
    trunk_init: str = "fixed"
    query_std: float = 1.0
    head_std: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        # Targets are kept in one canonical order, so that two spellings of one model are one model.
        wanted = list(self.targets)
        self.targets = tuple(t for t in TARGETS if t in wanted) + tuple(t for t in wanted if t not in TARGETS)
        if self.layers is not None:
            self.layers = tuple(sorted(set(self.layers)))
        super().__post_init__(**kwargs)
        problems = self._problems()
        if problems:
            raise ConfigError("The generator configuration", problems)

    def _problems(self) -> list[str]:
        problems: list[str] = []
        unknown = [t for t in self.targets if t not in TARGETS]
        if unknown or not self.targets:
            given = ", ".join(unknown) or "nothing"
            problems.append(f"targets: {given} is not a target; choose from {' '.join(TARGETS)}")
        for name, allowed in (
            ("queries", QUERY_MODES),
            ("head", HEADS),
            ("factors", FACTORS),
            ("trunk_init", TRUNK_INITS),
        ):
            if getattr(self, name) not in allowed:
                problems.append(f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("layer_step", "rank", "dim", "depth", "heads"):
            if getattr(self, name) < 1:
                problems.append(f"{name}: {getattr(self, name)} must be at least 1")
        if self.head == "dictionary" and self.dictionary_size < self.rank:
            problems.append(
                f"dictionary_size: {self.dictionary_size} is below rank {self.rank}, which no ΔW would then reach"
            )
        if self.mlp_ratio <= 0:
            problems.append(f"mlp_ratio: {self.mlp_ratio} must be above 0")
        if self.static_rank < 0:
            problems.append(f"static_rank: {self.static_rank} must be 0 or more")
        if self.heads >= 1 and self.dim % self.heads:
            problems.append(f"heads: {self.heads} does not divide dim {self.dim}")
        return problems

    def worn_layers(self, num_hidden_layers: int) -> tuple[int, ...]:
        """The decoder blocks that wear weights, in a language model of `num_hidden_layers` blocks.

        Raises:
            ConfigError: a layer that the language model does not have, or none at all.
        """
        step = self.layer_step
        layers = tuple(range(step - 1, num_hidden_layers, step)) if self.layers is None else tuple(self.layers)
        wrong = [layer for layer in layers if not 0 <= layer < num_hidden_layers]
        if wrong or not layers:
            given = ", ".join(map(str, wrong)) or (f"every {step}th" if self.layers is None else "none")
            raise ConfigError(
                "The generator configuration",
                [f"layers: {given} asked of a language model with layers 0 to {num_hidden_layers - 1}"],
            )
        return layers


class VLoRAConfig(PreTrainedConfig):
    """A vision encoder, a generator and a language model.

    Attributes:
        vision_config: configuration of any vision model of transformers, or of `efficientnet_lite`.
        text_config: configuration of a supported decoder.
        generator_config: see `GeneratorConfig`.
        vision_feature_layer: which hidden states of the encoder are the features; -2 is the last but one.
            Ignored by encoders that give one map only.
        vision_feature_select_strategy: `default` drops the class token, `full` keeps every position.
        views: how an image is looked at, each time moved by so many pixels to the right and down; what it is seen as
            is the mean. Training looks once, with the first. Several cost the encoder and the generator's trunk as
            many times, and the language model nothing.
        image_placeholder: `erase` leaves no trace of the image in the text; `mask` keeps one position with token
            id 0 that no other position attends to, as the authors' checkpoints expect.
        image_token_id: the token that marks that position; only `mask` needs it.
        image_token: how an image is written in a prompt.
    """

    model_type = "vlora"
    sub_configs: ClassVar[dict[str, Any]] = {  # pyright: ignore[reportIncompatibleMethodOverride]
        "vision_config": AutoConfig,
        "text_config": AutoConfig,
        "generator_config": GeneratorConfig,
    }

    # Given as dictionaries, configurations or nothing; configurations once this object is made.
    vision_config: Any = None
    text_config: Any = None
    generator_config: Any = None
    vision_feature_layer: int = -2
    vision_feature_select_strategy: str = "default"
    views: Sequence[Sequence[int]] = ONE_VIEW
    image_placeholder: str = "erase"
    image_token_id: int | None = None
    image_token: str = "<image>"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = _as_config(self.vision_config, "clip_vision_model")
        self.text_config = _as_config(self.text_config, "llama")
        if not isinstance(self.generator_config, GeneratorConfig):
            fields = dict(self.generator_config or {})
            self.generator_config = GeneratorConfig(**fields)
        parts = (self.vision_config, self.text_config)
        chosen = [part._attn_implementation for part in parts]
        super().__post_init__(**kwargs)
        for part, attention in zip(parts, chosen, strict=True):  # the base class has reset what a loaded part runs
            if part._attn_implementation is None:
                part._attn_implementation = attention
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        self.views = tuple(tuple(view) for view in self.views)
        problems: list[str] = []
        if not self.views or any(len(view) != 2 for view in self.views):
            given = [list(view) for view in self.views]
            problems.append(f"views: {given} must be one or more pairs of pixels, [right, down], such as [[0, 0]]")
        if self.image_placeholder not in PLACEHOLDERS:
            problems.append(f"image_placeholder: {self.image_placeholder!r} is not one of {', '.join(PLACEHOLDERS)}")
        if self.image_placeholder == "mask" and self.image_token_id is None:
            problems.append("image_token_id: image_placeholder 'mask' needs the id of the token that is masked")
        if self.vision_feature_select_strategy not in ("default", "full"):
            problems.append(
                f"vision_feature_select_strategy: {self.vision_feature_select_strategy!r} is not one of default, full"
            )
        if problems:
            raise ConfigError("The VLoRA configuration", problems)


def _as_config(given: dict[str, Any] | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    if isinstance(given, PreTrainedConfig):
        return given
    fields = dict(given or {})
    return AutoConfig.for_model(fields.pop("model_type", default_type), **fields)
