"""The nano model's vision encoder: EfficientNet-Lite0 with its published weights."""

from __future__ import annotations

from typing import Any

from ..model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, from_tensorflow_names
from .parts import vision_weights


def load_encoder(config: EfficientNetLiteConfig | Any | None = None) -> EfficientNetLiteModel:
    """The encoder with ImageNet weights.

    Args:
        config: which maps become features, and the image size; None takes the defaults.

    Raises:
        MissingDependency: the package with the weights is not installed.
        CheckpointError: the weights are not the published ones.
    """
    model = EfficientNetLiteModel(config or EfficientNetLiteConfig())
    model.load_state_dict(from_tensorflow_names(vision_weights()))
    return model.eval()
