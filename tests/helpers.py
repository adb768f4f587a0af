"""Tiny models with random weights, built in memory: every family, every option, and a ΔW that is not zero."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from vlora.model import GeneratorConfig, VLoRAForConditionalGeneration, VLoRAProcessor
from vlora.model.assemble import assemble
from vlora.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
from vlora.model.weights import MERGEABLE, PerceptualWeights

# One of each kind of generator: what every proof of the method holds for.
KINDS: list[dict[str, Any]] = [
    {},
    {"static_rank": 2, "norms": True},
    {"queries": "joint"},
    {"head": "dictionary", "dictionary_size": 5},
    {"factors": "b", "static_rank": 2, "norms": True, "head": "dictionary", "dictionary_size": 5},
    {"factors": "ab"},
    {"factors": "ab", "static_rank": 2, "norms": True, "layers": (0, 1, 3)},
    {"head": "dictionary", "dictionary_size": 6, "factors": "ab", "static_rank": 1, "queries": "joint", "rank": 3},
]
VOCABULARY = 101
TEXT_VOCABULARY = 280  # of the tokenizer below
IMAGE_SIZE = 32
PAD = 0
WINDOW = 6  # shorter than the prompts, so that the sliding layers of some families do slide
TEMPLATE = """\
{%- for message in messages -%}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}{{ "<image>" if part.type == "image" else part.text }}{% endfor %}{% endif -%}
<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# What a family needs beyond the common sizes. The common head_dim, 16, is not hidden / heads = 12.
_FAMILY: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"head_dim": 12},
    "qwen3": {},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    "gemma3_text": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "tie_word_embeddings": True,
    },
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
}


def tiny_llm_config(family: str = "llama", **fields: Any) -> PreTrainedConfig:
    """4 decoder blocks of width 48, 4 heads over 2 key-value heads; no end token, so that answers have one length."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": PAD,
    }
    return AutoConfig.for_model(family, **(common | _FAMILY[family] | fields))


def tiny_llm(family: str = "llama", **fields: Any) -> nn.Module:
    """A language model with its head and random weights; norms and biases too are away from their fresh values."""
    llm = AutoModelForCausalLM.from_config(tiny_llm_config(family, **fields))
    with torch.no_grad():
        for parameter in llm.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return llm.eval()


def tiny_vision(kind: str = "clip") -> nn.Module:
    """`clip`: 16 patches of width 32; `efficientnet`: 4 patches, convolutional."""
    if kind == "efficientnet":
        return EfficientNetLiteModel(EfficientNetLiteConfig(image_size=IMAGE_SIZE, stages=(3,))).eval()
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=8,
        initializer_range=0.5,
    )
    return CLIPVisionModel(config).eval()


def tiny_generator_config(**fields: Any) -> GeneratorConfig:
    """A trunk of width 16 and depth 1."""
    common: dict[str, Any] = {
        "targets": ("q", "k", "v", "o", "gate", "up", "down", "mlp"),
        "layers": (1, 3),
        "rank": 4,
        "alpha": 6.0,
        "dim": 16,
        "dictionary_size": 6,
        "depth": 1,
        "heads": 2,
        "head_std": 0.1,
        "query_std": 0.5,
    }
    return GeneratorConfig(**(common | fields))


def tiny_model(
    family: str = "llama",
    *,
    vision: str = "clip",
    kv_heads: int = 2,
    noise: float = 0.1,
    seed: int = 0,
    **generator: Any,
) -> VLoRAForConditionalGeneration:
    """A model whose images matter: B, and all that starts at zero or one, is noise.

    Args:
        family: one of `inject.SUPPORTED`.
        vision: see `tiny_vision`.
        kv_heads: key-value heads of the language model, which has 4 heads.
        noise: standard deviation of B; 0 leaves a fresh model as it is.
        seed: of all weights; the test's own random numbers are left alone.
        **generator: fields of the generator's configuration (`targets`, `layers`, `rank`, ...).
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = assemble(
            causal_lm=tiny_llm(family, num_key_value_heads=kv_heads),
            vision_tower=tiny_vision(vision),
            generator=tiny_generator_config(**generator),
        )
        if noise:
            add_noise(model, noise)
    return model


@functools.cache
def shared_model(family: str = "llama", **options: Any) -> VLoRAForConditionalGeneration:
    """`tiny_model`, built once for all tests that only read it."""
    return tiny_model(family, **options)


@torch.no_grad()
def add_noise(model: VLoRAForConditionalGeneration, noise: float) -> None:
    """Make images matter as much as they do after training, and leave nothing at zero or one."""
    generator = model.model.generator
    for module in (generator.project, *generator.trunks.modules()):
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=2 * module.in_features**-0.5)
    for b in generator.b.values():
        b.normal_(std=noise)
    for head in generator.b_heads.children() if "b" in generator.config.factors else ():
        head.weight.normal_(std=noise * head.in_features**-0.5)
    for name, parameter in generator.named_parameters():
        if parameter.ndim == 1 or name == "scales":
            parameter.add_(torch.randn_like(parameter) * 0.1)


def plain_llm(model: VLoRAForConditionalGeneration) -> nn.Module:
    """The language model as transformers makes it, with the same weights and without a trace of us."""
    config = copy.deepcopy(model.config.text_config)
    attention = config._attn_implementation
    dtype = next(model.model.language_model.parameters()).dtype
    plain = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()
    plain.model.load_state_dict(model.model.language_model.state_dict())
    plain.lm_head.load_state_dict(model.lm_head.state_dict())
    return plain


def only(weights: PerceptualWeights, *targets: str) -> PerceptualWeights:
    """The same weights with the A of all other targets at zero."""
    values = weights.values.clone()
    kept = PerceptualWeights(values, weights.layout, weights.shared)
    for layer, target in weights.layout.place_of:
        if target not in targets:
            kept.factors(layer, target)[0].zero_()  # a view of values
    return kept


@torch.no_grad()
def merge(plain: nn.Module, weights: PerceptualWeights) -> nn.Module:
    """Add one image's ΔW to the matrices themselves; the bypass `mlp` is no matrix and must be zero."""
    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
    names |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    (sample,) = range(len(weights))
    for layer, target in weights.layout.place_of:
        if target not in MERGEABLE:
            assert not weights.delta(layer, target).any()
            continue
        linear = plain.model.layers[layer].get_submodule(names[target])
        linear.weight.add_(weights.delta(layer, target)[sample].T)
    return plain


def images(count: int, seed: int = 1) -> Tensor:
    """Random pixels `[count, 3, height, width]`."""
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def token_ids(rows: int, length: int, seed: int = 2) -> Tensor:
    """Random token ids `[rows, length]`, none of them special."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(texts: Sequence[Tensor], side: str) -> dict[str, Tensor]:
    """Texts of unequal lengths as one batch, with the positions that each has on its own.

    Args:
        texts: each `[length]`.
        side: `left` or `right`.
    """
    rows, length = len(texts), max(len(text) for text in texts)
    ids = torch.full((rows, length), PAD)
    mask = torch.zeros(rows, length, dtype=torch.long)
    for row, text in enumerate(texts):
        where = slice(length - len(text), None) if side == "left" else slice(len(text))
        ids[row, where], mask[row, where] = text, 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


def real_positions(values: Tensor, mask: Tensor) -> list[Tensor]:
    """Each row of a padded batch without its padding."""
    return [row[keep.bool()] for row, keep in zip(values, mask, strict=True)]


def tiny_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """A byte a token, but for words of the sentences below and the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", *special)
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["what is this", "what colour is the thing", "is this a thing"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", *special[5:]],
    )


def tiny_processor(**options: Any) -> VLoRAProcessor:
    """Images of 32 x 32 pixels; a template that takes text and images."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return VLoRAProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tiny_tokenizer(),
        chat_template=TEMPLATE,
        **options,
    )


def picture(seed: int = 0, size: tuple[int, int] = (40, 50)) -> Image.Image:
    """A random picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def fresh_python(code: str, *arguments: object) -> str:
    """Run code in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def checkpoint_gradients(model: nn.Module, *, reentrant: bool) -> None:
    """Turn gradient checkpointing on, in any version of transformers 5."""
    with warnings.catch_warnings():  # later versions prefer another name for it
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
