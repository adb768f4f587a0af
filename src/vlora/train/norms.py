"""RMS norms in one kernel, where transformers' have seven: a fifth of a training step on a GPU.

On a CPU in float32 the outcome is the same to the bit; in bfloat16 the product with the weight is rounded once where
transformers' is rounded twice.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "SmolLM3RMSNorm")
"""Those that compute weight times x over its root mean square; Gemma's add one to the weight."""


def fuse_norms(language_model: nn.Module) -> int:
    """Let the norms of a language model run as one kernel each.

    Returns:
        How many there are.
    """
    norms: list[Any] = [module for module in language_model.modules() if type(module).__name__ in _NORMS]
    for module in norms:
        module.forward = partial(_forward, module)
    return len(norms)


def _forward(module: Any, hidden_states: Tensor) -> Tensor:
    if module.weight.dtype != hidden_states.dtype:
        return type(module).forward(module, hidden_states)
    with torch.autocast(hidden_states.device.type, enabled=False):  # which would make it float32 on a GPU
        return F.rms_norm(hidden_states, module.weight.shape, module.weight, module.variance_epsilon)
