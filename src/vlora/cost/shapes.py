"""The sizes that the formulas count with, read off configurations: no weight is loaded, no module is built.

config of a decoder    ──► LanguageModel
config of an encoder   ──► ViT, or CountedEncoder (convolutional nets: run on the meta device, and counted)
GeneratorConfig        ──► Generator, with the places that it writes weights for
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, PreTrainedConfig

from ..errors import ConfigError, InputError, UnsupportedModel
from ..model.configuration import GeneratorConfig
from ..model.inject import check_supported
from ..model.vision import encode, patch_count, takes_layers
from ..model.weights import Place


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with its head.

    Args:
        hidden: width of the residual stream.
        layers: decoder blocks.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head; `heads · head_dim` need not be `hidden`.
        ffn: width of the MLP.
        vocab: tokens.
        tied: whether the head is the embedding.
        norms: norms of a block that are as wide as `hidden`.
        qk_norm: whether a block has norms for queries and keys, as wide as a head.
        qkv_bias, o_bias, mlp_bias: which linear layers have a bias.
        window: keys that a position attends to in the layers that slide, 0 if none does. No formula uses it.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    norms: int = 2
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    window: int = 0

    @property
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """(in_dim, out_dim) of the linear layers of a block."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q": (self.hidden, queries),
            "k": (self.hidden, keys),
            "v": (self.hidden, keys),
            "o": (queries, self.hidden),
            "gate": (self.hidden, self.ffn),
            "up": (self.hidden, self.ffn),
            "down": (self.ffn, self.hidden),
        }

    def place(self, layer: int, target: str) -> Place:
        """Where a ΔW goes; the bypass `mlp` leads from what the MLP reads to what it writes."""
        dims = (self.hidden, self.hidden) if target == "mlp" else self.linears[target]
        return Place(layer, target, *dims)


@dataclass(frozen=True)
class ViT:
    """A vision transformer.

    Args:
        dim: width.
        layers: blocks.
        mlp: width of the MLP.
        mlp_matrices: 2, or 3 if it is gated.
        patches: of one image.
        prefix: tokens before the patches (class token, registers).
        patch_pixels: numbers that the patch embedding reads, channels · height · width of a patch.
        features: how many of the positions become features.
        head: what the encoder computes after its last block, and nobody uses: `none`, `dense` on one token,
            or `attention`, one query over all patches and an MLP.
        positions: learned positions.
        vectors: learned vectors of width `dim` outside the blocks and the head (tokens, norms).
        patch_bias, qkv_bias: which linear layers have a bias; all others do.
        layer_scale: whether a block scales what it adds.
    """

    dim: int
    layers: int
    mlp: int
    mlp_matrices: int
    patches: int
    prefix: int
    patch_pixels: int
    features: int
    head: str
    positions: int
    vectors: int
    patch_bias: bool
    qkv_bias: bool
    layer_scale: bool

    @property
    def tokens(self) -> int:
        """Positions that the blocks compute."""
        return self.patches + self.prefix


@dataclass(frozen=True)
class CountedEncoder:
    """An encoder without a formula: what one image takes was counted on the meta device.

    Args:
        dim: width of the features.
        features: patches of one image.
        macs: of one image.
        parameters: all of it, a classifier that features do not touch included.
    """

    dim: int
    features: int
    macs: int
    parameters: int


Encoder = ViT | CountedEncoder


@dataclass(frozen=True)
class Generator:
    """The perceptual weights generator.

    Args:
        dim: width of the trunk.
        depth: blocks of each trunk.
        mlp: width of the trunk's MLP.
        trunks: 1 if joint, else one per target.
        queries: of each trunk.
        features: patches it looks at.
        vision_dim: width of the features.
        rank: columns of what the image generates.
        static_rank: columns of the learned pair beside it.
        atoms: size of a dictionary; 0 with linear heads.
        factors: those that come from the image.
        norms: normed features and scales.
        targets: how many.
        worn_layers: decoder blocks that wear weights.
        places: every ΔW with its shape.
    """

    dim: int
    depth: int
    mlp: int
    trunks: int
    queries: int
    features: int
    vision_dim: int
    rank: int
    static_rank: int
    atoms: int
    factors: str
    norms: bool
    targets: tuple[str, ...]
    worn_layers: tuple[int, ...]
    places: tuple[Place, ...]

    @property
    def worn_rank(self) -> int:
        """Columns of A as they are worn."""
        return self.rank + self.static_rank


def language_model(config: Any) -> LanguageModel:
    """Read a decoder's sizes off its configuration.

    Raises:
        UnsupportedModel: a family that cannot wear weights.
        InputError: a size that is no positive number.
    """
    family = config.model_type
    check_supported(family)
    attention_bias = bool(getattr(config, "attention_bias", False)) and family not in ("mistral", "qwen2")
    mlp_bias = bool(getattr(config, "mlp_bias", False)) and family in ("llama", "smollm3")
    heads = config.num_attention_heads
    shape = LanguageModel(
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // (heads or 1),
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        norms=4 if family in ("gemma2", "gemma3_text") else 2,
        qk_norm=family in ("qwen3", "gemma3_text"),
        qkv_bias=attention_bias or family == "qwen2",
        o_bias=attention_bias,
        mlp_bias=mlp_bias,
        window=getattr(config, "sliding_window", None) or 0,
    )
    _check_positive("language model", shape, zero=("window",))
    return shape


def encoder(config: PreTrainedConfig, *, select: str = "default") -> Encoder:
    """Read an encoder's sizes off its configuration, or count it on the meta device.

    Args:
        config: of the encoder.
        select: `default`, the patches are the features, or `full`, every position is.

    Raises:
        UnsupportedModel: an encoder whose hidden states are no patches.
        InputError: a size that is no positive number.
    """
    patches = _patches(config)
    read = _VITS.get(config.model_type)
    shape = read(config, patches, select) if read else _count(config, patches, select)
    _check_positive("vision encoder", shape, zero=("prefix", "vectors"))
    return shape


def generator(config: GeneratorConfig, llm: LanguageModel, eyes: Encoder) -> Generator:
    """Lay a generator out for a language model and an encoder.

    Raises:
        ConfigError: layers that the language model does not have, or an MLP without width.
    """
    mlp = int(config.dim * config.mlp_ratio)
    if mlp < 1:
        raise ConfigError(
            "The generator configuration",
            [f"mlp_ratio: {config.mlp_ratio} gives the MLP no width; give a positive one"],
        )
    layers, targets = config.worn_layers(llm.layers), tuple(config.targets)
    trunks = 1 if config.queries == "joint" else len(targets)
    return Generator(
        dim=config.dim,
        depth=config.depth,
        mlp=mlp,
        trunks=trunks,
        queries=len(targets) * len(layers) // trunks,
        features=eyes.features,
        vision_dim=eyes.dim,
        rank=config.rank,
        static_rank=config.static_rank,
        atoms=config.dictionary_size if config.head == "dictionary" else 0,
        factors=config.factors,
        norms=config.norms,
        targets=targets,
        worn_layers=layers,
        places=tuple(llm.place(layer, target) for layer in layers for target in targets),
    )


def _clip(config: Any, patches: int, select: str) -> ViT:
    # Vectors: the class token, and the weight and bias of the norms before and after the blocks.
    return _vit(config, patches, select, prefix=1, vectors=1 + 2 + 2, patch_bias=False)


def _siglip(config: Any, patches: int, select: str) -> ViT:
    head = "attention" if getattr(config, "vision_use_head", True) else "none"
    return _vit(config, patches, select, prefix=0, vectors=2, head=head)


def _vit_of_google(config: Any, patches: int, select: str) -> ViT:
    return _vit(config, patches, select, prefix=1, vectors=1 + 2, head="dense", qkv_bias=bool(config.qkv_bias))


def _dinov2(config: Any, patches: int, select: str) -> ViT:
    registers = getattr(config, "num_register_tokens", 0)
    mlp, gated = int(config.hidden_size * config.mlp_ratio), bool(config.use_swiglu_ffn)
    return _vit(
        config,
        patches,
        select,
        prefix=1 + registers,
        # The tokens, a mask token that only pretraining uses, and the last norm.
        vectors=1 + registers + int(getattr(config, "use_mask_token", True)) + 2,
        qkv_bias=bool(config.qkv_bias),
        layer_scale=True,
        mlp=(int(mlp * 2 / 3) + 7) // 8 * 8 if gated else mlp,
        mlp_matrices=3 if gated else 2,
    )


_VITS = {
    "clip_vision_model": _clip,
    "siglip_vision_model": _siglip,
    "vit": _vit_of_google,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
}


def _vit(
    config: Any, patches: int, select: str, *, prefix: int, vectors: int, mlp: int | None = None, **given: Any
) -> ViT:
    height, width = _sides(config.patch_size)
    common: dict[str, Any] = {
        "dim": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mlp": config.intermediate_size if mlp is None else mlp,
        "mlp_matrices": 2,
        "patches": patches,
        "patch_pixels": getattr(config, "num_channels", 3) * height * width,
        "features": patches + (prefix if select == "full" else 0),
        "head": "none",
        "positions": patches + min(prefix, 1),  # registers have none
        "patch_bias": True,
        "qkv_bias": True,
        "layer_scale": False,
    }
    return ViT(prefix=prefix, vectors=vectors, **(common | given))


def _count(config: Any, patches: int, select: str) -> CountedEncoder:
    """Run an encoder without weights, as `vision.encode` runs it, and count its multiplications."""
    layer = -2 if takes_layers(config) else -1
    try:
        # Attention taken apart into two products, which is how every other formula counts it.
        with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module: Any = AutoModel.from_config(config).eval()
            pixels = torch.empty(1, getattr(config, "num_channels", 3), *_sides(config.image_size))
            features = encode(module, pixels, feature_layer=layer, select=select)
    except Exception as error:  # whatever the code of a family raises that takes no single images
        raise _no_patches(config) from error
    if features.ndim != 3 or (select == "default" and features.shape[1] != patches):
        raise _no_patches(config)
    return CountedEncoder(
        dim=int(features.shape[2]),
        features=int(features.shape[1]),
        macs=counter.get_total_flops() // 2,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )


def _no_patches(config: Any) -> UnsupportedModel:
    return UnsupportedModel(
        f"The hidden states of a vision encoder of type {config.model_type!r} are not the patches of one image; choose "
        f"one whose are: {', '.join(_VITS)}, efficientnet_lite."
    )


def _patches(config: Any) -> int:
    patch = _sides(getattr(config, "patch_size", 1))
    if min(patch) < 1:
        raise InputError(f"The configuration of the vision encoder gives patch_size = {patch}: give a positive one.")
    return patch_count(config)


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check_positive(part: str, shape: Any, zero: tuple[str, ...] = ()) -> None:
    for field in fields(shape):
        value = getattr(shape, field.name)
        if isinstance(value, bool | str):
            continue
        if not isinstance(value, int) or value < (0 if field.name in zero else 1):
            raise InputError(
                f"The configuration of the {part} gives {field.name} = {value!r}; every size is a positive whole "
                "number: correct its config.json."
            )
