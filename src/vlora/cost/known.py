"""Sizes of common models, as fields of their config.json: a bill needs neither a download nor a weight.

Only models whose number of parameters, computed from these fields, is the published one (a test keeps this).
"""

from __future__ import annotations

from typing import Any

from ..model.efficientnet_lite import EfficientNetLiteConfig


def _llm(family: str, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> Any:
    return {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        **more,
    }


def _vit(family: str, hidden: int, ffn: int, layers: int, heads: int, image: int, patch: int) -> Any:
    return {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
    }


def _dinov2(hidden: int, layers: int, heads: int) -> Any:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": "dinov2", **sizes, "image_size": 518, "patch_size": 14}


def _lite(variant: str) -> Any:
    return {"model_type": EfficientNetLiteConfig.model_type, "variant": variant}


_TIED = {"tie_word_embeddings": True}

LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "vicuna-7b": _llm("llama", 4096, 11008, 32, 32, 32, 32000),
    "vicuna-13b": _llm("llama", 5120, 13824, 40, 40, 40, 32000),
    "llama-2-7b": _llm("llama", 4096, 11008, 32, 32, 32, 32000),
    "llama-2-13b": _llm("llama", 5120, 13824, 40, 40, 40, 32000),
    "llama-3-8b": _llm("llama", 4096, 14336, 32, 32, 8, 128256),
    "llama-3.2-1b": _llm("llama", 2048, 8192, 16, 32, 8, 128256, head_dim=64, **_TIED),
    "llama-3.2-3b": _llm("llama", 3072, 8192, 28, 24, 8, 128256, head_dim=128, **_TIED),
    "mistral-7b": _llm("mistral", 4096, 14336, 32, 32, 8, 32000, sliding_window=4096),
    "mistral-7b-v0.3": _llm("mistral", 4096, 14336, 32, 32, 8, 32768, sliding_window=None),
    "qwen2.5-0.5b": _llm("qwen2", 896, 4864, 24, 14, 2, 151936, **_TIED),
    "qwen2.5-1.5b": _llm("qwen2", 1536, 8960, 28, 12, 2, 151936, **_TIED),
    "qwen2.5-3b": _llm("qwen2", 2048, 11008, 36, 16, 2, 151936, **_TIED),
    "qwen2.5-7b": _llm("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "qwen3-0.6b": _llm("qwen3", 1024, 3072, 28, 16, 8, 151936, head_dim=128, **_TIED),
    "qwen3-1.7b": _llm("qwen3", 2048, 6144, 28, 16, 8, 151936, head_dim=128, **_TIED),
    "qwen3-4b": _llm("qwen3", 2560, 9728, 36, 32, 8, 151936, head_dim=128, **_TIED),
    "qwen3-8b": _llm("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128),
    "gemma-2b": _llm("gemma", 2048, 16384, 18, 8, 1, 256000, head_dim=256, **_TIED),
    "gemma-2-2b": _llm("gemma2", 2304, 9216, 26, 8, 4, 256000, head_dim=256, **_TIED),
    "gemma-3-1b": _llm("gemma3_text", 1152, 6912, 26, 4, 1, 262144, head_dim=256, sliding_window=512, **_TIED),
    "smollm2-135m": _llm("llama", 576, 1536, 30, 9, 3, 49152, **_TIED),
    "smollm2-360m": _llm("llama", 960, 2560, 32, 15, 5, 49152, **_TIED),
    "smollm2-1.7b": _llm("llama", 2048, 8192, 24, 32, 32, 49152, **_TIED),
    "smollm3-3b": _llm("smollm3", 2048, 11008, 36, 16, 4, 128256, **_TIED),
}

ENCODERS: dict[str, dict[str, Any]] = {
    "clip-vit-l-14-336": _vit("clip_vision_model", 1024, 4096, 24, 16, 336, 14),
    "clip-vit-l-14": _vit("clip_vision_model", 1024, 4096, 24, 16, 224, 14),
    "clip-vit-b-16": _vit("clip_vision_model", 768, 3072, 12, 12, 224, 16),
    "clip-vit-b-32": _vit("clip_vision_model", 768, 3072, 12, 12, 224, 32),
    "siglip-so400m-14-384": _vit("siglip_vision_model", 1152, 4304, 27, 16, 384, 14),
    "siglip-b-16-224": _vit("siglip_vision_model", 768, 3072, 12, 12, 224, 16),
    "dinov2-s": _dinov2(384, 12, 6),
    "dinov2-b": _dinov2(768, 12, 12),
    "dinov2-l": _dinov2(1024, 24, 16),
    "efficientnet-lite0": _lite("lite0"),
    "efficientnet-lite1": _lite("lite1"),
    "efficientnet-lite2": _lite("lite2"),
}

# Hub ids of the same sizes; of each, what stands after the slash is a name too.
ALIASES: dict[str, str] = {
    "lmsys/vicuna-7b-v1.5": "vicuna-7b",
    "lmsys/vicuna-13b-v1.5": "vicuna-13b",
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-7b-chat-hf": "llama-2-7b",
    "meta-llama/Llama-2-13b-hf": "llama-2-13b",
    "meta-llama/Llama-2-13b-chat-hf": "llama-2-13b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama-3-8b",
    "meta-llama/Llama-3.1-8B": "llama-3-8b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3-8b",
    "meta-llama/Llama-3.2-1B": "llama-3.2-1b",
    "meta-llama/Llama-3.2-1B-Instruct": "llama-3.2-1b",
    "meta-llama/Llama-3.2-3B": "llama-3.2-3b",
    "meta-llama/Llama-3.2-3B-Instruct": "llama-3.2-3b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
    "mistralai/Mistral-7B-Instruct-v0.1": "mistral-7b",
    "mistralai/Mistral-7B-v0.3": "mistral-7b-v0.3",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b-v0.3",
    "Qwen/Qwen2.5-0.5B": "qwen2.5-0.5b",
    "Qwen/Qwen2.5-0.5B-Instruct": "qwen2.5-0.5b",
    "Qwen/Qwen2.5-1.5B": "qwen2.5-1.5b",
    "Qwen/Qwen2.5-1.5B-Instruct": "qwen2.5-1.5b",
    "Qwen/Qwen2.5-3B": "qwen2.5-3b",
    "Qwen/Qwen2.5-3B-Instruct": "qwen2.5-3b",
    "Qwen/Qwen2.5-7B": "qwen2.5-7b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "Qwen/Qwen3-0.6B": "qwen3-0.6b",
    "Qwen/Qwen3-1.7B": "qwen3-1.7b",
    "Qwen/Qwen3-4B": "qwen3-4b",
    "Qwen/Qwen3-8B": "qwen3-8b",
    "google/gemma-2b": "gemma-2b",
    "google/gemma-2b-it": "gemma-2b",
    "google/gemma-2-2b": "gemma-2-2b",
    "google/gemma-2-2b-it": "gemma-2-2b",
    "google/gemma-3-1b-pt": "gemma-3-1b",
    "google/gemma-3-1b-it": "gemma-3-1b",
    "HuggingFaceTB/SmolLM2-135M": "smollm2-135m",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m",
    "HuggingFaceTB/SmolLM2-360M": "smollm2-360m",
    "HuggingFaceTB/SmolLM2-360M-Instruct": "smollm2-360m",
    "HuggingFaceTB/SmolLM2-1.7B": "smollm2-1.7b",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": "smollm2-1.7b",
    "HuggingFaceTB/SmolLM3-3B": "smollm3-3b",
    "openai/clip-vit-large-patch14-336": "clip-vit-l-14-336",
    "openai/clip-vit-large-patch14": "clip-vit-l-14",
    "openai/clip-vit-base-patch16": "clip-vit-b-16",
    "openai/clip-vit-base-patch32": "clip-vit-b-32",
    "google/siglip-so400m-patch14-384": "siglip-so400m-14-384",
    "google/siglip-base-patch16-224": "siglip-b-16-224",
    "facebook/dinov2-small": "dinov2-s",
    "facebook/dinov2-base": "dinov2-b",
    "facebook/dinov2-large": "dinov2-l",
}
