"""The formulas against torch's own counter, run over the real modules, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    SiglipVisionConfig,
    ViTConfig,
)

from tests.helpers import IMAGE_SIZE, KINDS, VOCABULARY, images, tiny_llm_config, tiny_model, token_ids
from vlora.cost import formulas, shapes
from vlora.cost.bill import Inputs, Shapes, price
from vlora.cost.sources import find
from vlora.model import GeneratorConfig, VLoRAForConditionalGeneration
from vlora.model.generator import PerceptualWeightsGenerator
from vlora.model.loss import IGNORED
from vlora.model.vision import encode

TOLERANCE = 0.001  # transformers 5.17 finds rotary angles by a product; without it, both counts are one
TEXT, ANSWER, QUESTIONS = 9, 4, 2
ALL = ("q", "k", "v", "o", "gate", "up", "down", "mlp")

# Family, key-value heads (4 is MHA), encoder, and what the generator is.
MODELS: list[tuple[str, int, str, dict[str, Any]]] = [
    ("llama", 4, "clip", {"targets": ("q", "k", "v", "o", "mlp")}),  # the authors'
    ("llama", 2, "clip", {"targets": ALL}),
    ("mistral", 1, "clip", {"queries": "joint"}),
    ("qwen2", 2, "efficientnet", {"static_rank": 2, "norms": True}),
    ("qwen3", 2, "clip", {"head": "dictionary", "dictionary_size": 5}),
    ("gemma", 1, "clip", {"factors": "b"}),
    ("gemma", 1, "clip", {"factors": "ab"}),
    ("gemma2", 2, "clip", {"factors": "ab", "static_rank": 2, "norms": True, "layers": (0, 1, 3)}),
    ("gemma3_text", 2, "clip", KINDS[-1]),
    ("smollm3", 2, "clip", {"targets": ("v",), "layers": (2,), "rank": 1, "depth": 3, "mlp_ratio": 1.5}),
    ("llama", 4, "clip", {"targets": ("o", "down"), "layers": (0,)}),
]
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
ENCODERS = ("clip-vit-l-14-336", "siglip-so400m-14-384", "dinov2-s", "efficientnet-lite0")
TINY_ENCODERS = (
    SiglipVisionConfig(**_SMALL, intermediate_size=48, vision_use_head=False),
    ViTConfig(**_SMALL, intermediate_size=48, qkv_bias=False),
    Dinov2Config(**_SMALL, mlp_ratio=3, use_swiglu_ffn=True, use_mask_token=False),
    Dinov2WithRegistersConfig(**_SMALL, num_register_tokens=3),
    DeiTConfig(**_SMALL, intermediate_size=48),  # no formula of its own: counted
)
models = pytest.mark.parametrize(("family", "kv_heads", "vision", "kind"), MODELS)


def macs(run: Callable[[], Any]) -> int:
    """What torch counts, with attention taken apart into the two products that it knows."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // formulas.FLOPS_PER_MAC


def close(counted: int) -> Any:
    return pytest.approx(counted, rel=TOLERANCE)


def shapes_of(model: VLoRAForConditionalGeneration) -> Shapes:
    config = model.config
    llm, eyes = shapes.language_model(config.text_config), shapes.encoder(config.vision_config)
    return Shapes(llm, eyes, shapes.generator(config.generator_config, llm, eyes))


@models
def test_inference(family: str, kv_heads: int, vision: str, kind: dict[str, Any]) -> None:
    model = tiny_model(family, kv_heads=kv_heads, vision=vision, **kind)
    sizes = shapes_of(model)
    llm, eyes, written = sizes.language_model, sizes.encoder, sizes.generator
    tower: Any = model.model.vision_tower
    features: list[torch.Tensor] = []
    look = lambda: features.append(encode(tower, images(1), feature_layer=-2, select="default"))  # noqa: E731
    assert formulas.encoder_macs(eyes) == close(macs(look))
    assert (written.features, written.vision_dim) == tuple(features[0].shape[1:])

    generator = model.model.generator
    assert formulas.generator_macs(written) == macs(lambda: generator(features[0]))
    memory = torch.randn(1, written.features, written.dim)
    assert formulas.trunk_macs(written) == macs(lambda: [trunk(memory) for trunk in generator.trunks.values()])
    codes = generator.perceive(features[0])
    assert formulas.head_macs(written) == macs(lambda: generator.expand(codes))

    weights, ids = generator.expand(codes), token_ids(1, TEXT)
    bare, worn = formulas.llm_macs(llm, TEXT, TEXT, TEXT), formulas.wearing_macs(written, TEXT)
    counted = macs(lambda: model(ids)), macs(lambda: model(ids, perceptual_weights=weights))
    assert bare == close(counted[0])
    assert worn == counted[1] - counted[0]

    cache = DynamicCache()  # without a configuration, none of its layers slides
    model(ids, perceptual_weights=weights, past_key_values=cache)
    step = macs(lambda: model(ids[:, :1], perceptual_weights=weights, past_key_values=cache))
    assert formulas.decoding_macs(llm, TEXT, 1) + formulas.wearing_macs(written, 1) == close(step)


@models
@pytest.mark.parametrize(("stage", "logits"), [(1, "needed"), (2, "all")])
def test_training_step(family: str, kv_heads: int, vision: str, kind: dict[str, Any], stage: int, logits: str) -> None:
    model = tiny_model(family, kv_heads=kv_heads, vision=vision, **kind).train()
    model.requires_grad_(stage == 2)
    model.model.vision_tower.requires_grad_(False)
    model.model.generator.requires_grad_(True)
    ids = token_ids(QUESTIONS, TEXT + ANSWER)
    labels = ids.masked_fill(torch.arange(TEXT + ANSWER) < TEXT, IGNORED)
    losses: list[torch.Tensor] = []

    def forward() -> None:
        supervised = logits == "needed"
        losses.append(model(ids, pixel_values=images(1), labels=labels, supervised_only=supervised).loss)

    training = price(shapes_of(model), inputs(16, logits)).training
    expected = training.vlora_stage1 if stage == 1 else training.vlora_stage2
    assert expected.forward == close(formulas.FLOPS_PER_MAC * macs(forward))
    assert expected.backward == close(formulas.FLOPS_PER_MAC * macs(losses[0].backward))
    assert expected.total == expected.forward + expected.backward


@pytest.mark.parametrize("targets", ["q", "k", "v", "o", "gate", "up", "down", "mlp", "qk", "vo"])
def test_backward_of_the_first_worn_layer(targets: str) -> None:
    """Which gradients are needed there depends on the target; nothing below it has any."""
    names = (targets,) if targets in ALL else tuple(targets)
    model = tiny_model("llama", targets=names, layers=(3,))
    model.requires_grad_(False)
    model.model.generator.requires_grad_(True)
    sizes = shapes_of(model)
    ids = token_ids(1, TEXT)
    values = model.expand(model.perceive(images(1))).values.detach().requires_grad_()
    losses: list[torch.Tensor] = []
    macs(lambda: losses.append(model(ids, perceptual_weights=values, labels=ids).loss))
    expected = formulas.llm_backward_macs(
        sizes.language_model, TEXT, TEXT, generator=sizes.generator, input_trained=False, weights_trained=False
    )
    assert expected == macs(losses[0].backward)


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("stage", [1, 2])
def test_visual_token_model(family: str, stage: int) -> None:
    """Against transformers' own LLaVA."""
    llava = tiny_llava(tiny_llm_config(family))
    sizes = shapes_of(tiny_model(family))
    patches = sizes.encoder.features
    bill = price(sizes, inputs(patches, "all"))
    assert sum(p.numel() for p in llava.parameters()) == bill.parameters.visual_tokens
    image = torch.full((1, patches), VOCABULARY - 1)
    prompt = {"input_ids": torch.cat([image, token_ids(1, TEXT) % (VOCABULARY - 1)], dim=1), "pixel_values": images(1)}
    assert bill.visual_tokens.first_token == close(formulas.FLOPS_PER_MAC * macs(lambda: llava(**prompt)))
    after_image = macs(lambda: after_prefix(llava, patches, TEXT))
    assert bill.visual_tokens_cached.prefill == close(formulas.FLOPS_PER_MAC * after_image)

    llava.requires_grad_(stage == 2)
    llava.model.vision_tower.requires_grad_(False)
    llava.model.multi_modal_projector.requires_grad_(True)
    ids = torch.cat([image, token_ids(1, TEXT + ANSWER) % (VOCABULARY - 1)], dim=1)
    losses: list[torch.Tensor] = []
    step = lambda: losses.append(llava(input_ids=ids, pixel_values=images(1), labels=ids).loss)  # noqa: E731
    forward = macs(step)
    one = price(sizes, inputs(patches, "all", questions=1)).training
    expected = one.visual_tokens_stage1 if stage == 1 else one.visual_tokens_stage2
    assert expected.forward == close(formulas.FLOPS_PER_MAC * forward)
    assert expected.backward == close(formulas.FLOPS_PER_MAC * macs(losses[0].backward))


@pytest.mark.parametrize("name", ["vicuna-7b", "qwen3-4b", "gemma-2-2b"])
def test_language_models_at_full_size(name: str) -> None:
    """Without weights, on the meta device."""
    config = find(name).config
    with torch.device("meta"):
        llm: Any = AutoModelForCausalLM.from_config(config)
        ids, mask = torch.zeros(1, TEXT, dtype=torch.long), torch.zeros(1, 1, TEXT, TEXT)
        counted = macs(lambda: llm(input_ids=ids, attention_mask=mask, use_cache=False))
    sizes = shapes.language_model(config)
    assert formulas.llm_macs(sizes, TEXT, TEXT, TEXT) == close(counted)
    assert formulas.llm_parameters(sizes) == sum(p.numel() for p in llm.parameters())


@pytest.mark.parametrize("options", [{}, {"dim": 1024}, {"queries": "joint", "head": "dictionary", "factors": "ab"}])
def test_generators_at_full_size(options: dict[str, Any]) -> None:
    config = GeneratorConfig(**options)
    llm, eyes = (find(name).config for name in ("llama-3-8b", "siglip-b-16-224"))
    decoder = shapes.language_model(llm)
    written = shapes.generator(config, decoder, shapes.encoder(eyes))
    with torch.device("meta"):
        generator = PerceptualWeightsGenerator(config, vision_dim=768, patches=196, places=written.places)
        counted = macs(lambda: generator(torch.zeros(1, 196, 768)))
    assert formulas.generator_macs(written) == counted
    assert formulas.generator_parameters(written) == sum(p.numel() for p in generator.parameters())


@pytest.mark.parametrize("config", [*ENCODERS, *TINY_ENCODERS], ids=lambda c: c if isinstance(c, str) else c.model_type)
def test_encoders(config: Any) -> None:
    """At full size and of every family, with what they compute after their last block."""
    config = find(config).config if isinstance(config, str) else config
    sizes = shapes.encoder(config)
    with torch.device("meta"):
        tower: Any = AutoModel.from_config(config)
        pixels = torch.zeros(1, 3, config.image_size, config.image_size)
        states: list[torch.Tensor] = []
        counted = macs(lambda: states.append(encode(tower, pixels, feature_layer=-2, select="default")))
    assert formulas.encoder_macs(sizes) == close(counted)
    assert formulas.encoder_parameters(sizes) == sum(p.numel() for p in tower.parameters())
    assert (sizes.features, sizes.dim) == tuple(states[0].shape[1:])


def after_prefix(llava: LlavaForConditionalGeneration, prefix: int, text: int) -> None:
    """A question after an image that lies in the cache, laid there without computing it."""
    cache = DynamicCache(config=llava.config.text_config)
    for layer in range(llava.config.text_config.num_hidden_layers):
        config = llava.config.text_config
        state = torch.zeros(1, config.num_key_value_heads, prefix, config.head_dim)
        cache.update(state, state, layer)
    llava(input_ids=token_ids(1, text) % (VOCABULARY - 1), past_key_values=cache)


def tiny_llava(text: PreTrainedConfig) -> LlavaForConditionalGeneration:
    """The same encoder and language model as `tiny_model`, joined by visual tokens."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY - 1,
        image_token_id=VOCABULARY - 1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=text.tie_word_embeddings,
    )
    return LlavaForConditionalGeneration(config)


def inputs(visual_tokens: int, logits: str, questions: int = QUESTIONS) -> Inputs:
    return Inputs("llm", "vision", TEXT, ANSWER, questions, visual_tokens, logits, "float32")
