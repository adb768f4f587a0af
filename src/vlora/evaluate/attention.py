"""Where the perceptual queries looked: cross-attention over the patches, and the patches as places of a picture.

The trunk's fused attention gives no weights, so they are computed once more, from what its q_proj and k_proj gave:

    softmax(q kᵀ / √head_dim)   [image, target, layer, block, head, patch]   sums to one over the patches

A patch is where its feature lies, not all that it knows: encoders mix far more of the picture into each feature.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..model.efficientnet_lite import EfficientNetLiteConfig
from ..model.generator import Attention, PerceptualWeightsGenerator
from ..model.vision import takes_layers


@torch.no_grad()
def cross_attention(generator: PerceptualWeightsGenerator, features: Tensor, *, average_heads: bool = False) -> Tensor:
    """How much each perceptual query attended to each patch.

    Args:
        generator: of any kind; its hooks are off again afterwards. No other thread may use it meanwhile.
        features: `[image, patch, vision_dim]`.
        average_heads: the mean over heads, which drops their axis.

    Returns:
        `[image, target, layer, block, head, patch]` in float32, targets and layers in the generator's order; every
        row over the patches sums to one.

    Raises:
        InputError: features of another shape than the generator was built for.
    """
    with ExitStack() as hooks:
        modules: list[list[Any]] = [
            [block.cross_attention for block in trunk.blocks]  # type: ignore[union-attr]
            for trunk in generator.trunks.values()
        ]
        heard = [[_listen(module, hooks) for module in blocks] for blocks in modules]
        generator.perceive(features)
    trunks = [
        torch.stack([_probabilities(module, said) for module, said in zip(blocks, notes, strict=True)], dim=2)
        for blocks, notes in zip(modules, heard, strict=True)
    ]
    looked = torch.cat(trunks, dim=1).unflatten(1, (len(generator.targets), len(generator.layers)))
    return looked.mean(dim=-2) if average_heads else looked


def _listen(module: Attention, hooks: ExitStack) -> dict[str, Tensor]:
    """Note what the projections give, for as long as the hooks stay on."""
    said: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            said[name] = output

        return hook

    for name in ("q_proj", "k_proj"):
        hooks.enter_context(module.get_submodule(name).register_forward_hook(note(name)))
    return said


def _probabilities(module: Attention, said: dict[str, Tensor]) -> Tensor:
    """`[image, query, head, patch]`."""
    q, k = (said[name].float().unflatten(-1, (module.heads, -1)).transpose(1, 2) for name in ("q_proj", "k_proj"))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).transpose(1, 2)


@dataclass(frozen=True)
class Grid:
    """How features lie on the picture that the encoder reads: row by row, from the top left.

    Args:
        first: features before the first patch, such as a class token.
        rows: patches from top to bottom.
        columns: patches from left to right.
        height: pixels of a patch.
        width: pixels of a patch.
    """

    first: int
    rows: int
    columns: int
    height: int
    width: int

    @property
    def features(self) -> int:
        """All of them, on the picture or not."""
        return self.first + self.rows * self.columns

    def place(self, values: Tensor) -> Tensor:
        """Values of the features `[..., patch]` -> of the places `[..., rows, columns]`."""
        return values[..., self.first :].unflatten(-1, (self.rows, self.columns))


def find_grid(config: PreTrainedConfig, size: tuple[int, int], features: int) -> Grid | None:
    """The grid of an encoder's features, or None where it is not known.

    EfficientNet-Lite brings the maps of all its stages to one grid, side by side in the channels, so that it is one
    grid whatever `stages` says. A transformer has a feature for each patch, maybe after a few tokens of its own.

    Args:
        config: the encoder's.
        size: height and width of the pixels it reads.
        features: how many it gives.
    """
    known: Any = config
    if isinstance(config, EfficientNetLiteConfig):
        height = width = config.stride
        rows, columns = (ceil(side / config.stride) for side in size)  # the last patch may reach beyond the edge
        own_tokens = 0
    elif takes_layers(config):
        side = known.patch_size
        height, width = (side, side) if isinstance(side, int) else map(int, side)
        rows, columns = size[0] // height, size[1] // width
        own_tokens = 2 + (getattr(config, "num_register_tokens", 0) or 0)  # at most: of class and of distillation
    else:
        return None
    first = features - rows * columns
    return Grid(first, rows, columns, height, width) if 0 <= first <= own_tokens else None


def picture_seen(pixels: Tensor, image_processor: Any) -> NDArray[np.uint8]:
    """The picture as the encoder read it, cropped or padded: the image processor's last two steps undone.

    Args:
        pixels: one image of `pixel_values`, `[3, height, width]`.
        image_processor: what made them.

    Returns:
        `[height, width, 3]`.
    """
    values = pixels.detach().to("cpu", torch.float64)
    if image_processor.do_normalize:
        statistics = (image_processor.image_mean, image_processor.image_std)
        mean, std = (torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1) for numbers in statistics)
        values = values * std + mean
    if image_processor.do_rescale:
        values = values / image_processor.rescale_factor
    return values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
