"""The model: image -> features -> visual parameters -> weights -> language model.

    image ─ vision ─► features ─ trunk ─► VisualParameters ─ heads ─► PerceptualWeights ─ inject ─► LLM ─► text

| file | station |
|---|---|
| `vision.py` | 1. pixels -> features |
| `generator.py` | 2. features -> visual parameters -> factors |
| `weights.py` | 3. the value types: `VisualParameters`, `PerceptualWeights` |
| `inject.py` | 4. a language model wears perceptual weights |
| `modeling.py` | 1-4 joined |
| `processing.py` | images and messages -> tensors |
| `packing.py` | in training, the texts about one image in one row |
| `assemble.py` | an LLM + a vision encoder + a generator config -> a model; checkpoints |
| `efficientnet_lite.py` | a small convolutional encoder |

Axes, everywhere by these names: image, row (of a batch of texts), text (tokens), patch, vision_dim, target, layer,
query, dim (of the generator), in_dim and out_dim (of a linear layer), rank.
"""

from __future__ import annotations

from .configuration import GeneratorConfig, VLoRAConfig
from .modeling import VLoRAForConditionalGeneration, VLoRAModel
from .processing import VLoRAProcessor
from .weights import PerceptualWeights, VisualParameters

__all__ = [
    "GeneratorConfig",
    "PerceptualWeights",
    "VLoRAConfig",
    "VLoRAForConditionalGeneration",
    "VLoRAModel",
    "VLoRAProcessor",
    "VisualParameters",
    "register",
]


def register() -> None:
    """Make the Auto classes of transformers know these models; doing it twice is harmless."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from . import efficientnet_lite

    AutoConfig.register("vlora", VLoRAConfig, exist_ok=True)
    AutoModel.register(VLoRAConfig, VLoRAModel, exist_ok=True)
    AutoModelForImageTextToText.register(VLoRAConfig, VLoRAForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(VLoRAConfig, VLoRAProcessor, exist_ok=True)
    efficientnet_lite.register()
