"""The nano model's vision encoder: an EfficientNet-Lite with its published weights. The one that ships has Lite0."""

from __future__ import annotations

from typing import Any

from ..model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, from_tensorflow_names
from .parts import vision_weights


def load_encoder(config: EfficientNetLiteConfig | Any | None = None) -> EfficientNetLiteModel:
    """The encoder with ImageNet weights.

    Args:
        config: which EfficientNet-Lite, which of its maps become features, and the image size; None takes the defaults.

    Raises:
        MissingDependency: the package with the weights is not installed.
        CheckpointError: the weights are not the published ones.
    """
    chosen: Any = config or EfficientNetLiteConfig()
    model = EfficientNetLiteModel(chosen)
    model.load_state_dict(from_tensorflow_names(vision_weights(chosen.variant)))
    return model.eval()
