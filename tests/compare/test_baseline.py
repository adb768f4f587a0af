"""The baseline is made of the same parts, is LLaVA to everybody else, and looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)

from tests.compare.tiny import ROWS, batch_of, tiny_baseline
from tests.helpers import (
    IMAGE_SIZE,
    TEMPLATE,
    TEXT_VOCABULARY,
    fresh_python,
    images,
    picture,
    tiny_llm,
    tiny_processor,
    tiny_tokenizer,
    tiny_vision,
    token_ids,
)
from vlora.compare.baseline import baseline_loss, build_baseline, expand_images, save_baseline
from vlora.errors import UnsupportedModel
from vlora.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, image_processor
from vlora.model.vision import encode

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}


def built(vision: Any, *, llm: Any = None, **options: Any) -> tuple[Any, Any]:
    return build_baseline(
        causal_lm=llm or tiny_llm(vocab_size=ROWS),
        vision_tower=vision,
        image_processor=tiny_processor().image_processor,
        tokenizer=tiny_tokenizer(),
        chat_template=TEMPLATE,
        **options,
    )


# -- the parts ----------------------------------------------------------------------------------------


def test_parts_are_shared_and_left_alone() -> None:
    llm, vision = tiny_llm(vocab_size=ROWS), tiny_vision()
    before = [{n: p.clone() for n, p in part.state_dict().items()} for part in (llm, vision)]
    ids = token_ids(2, 7)
    expected = llm(ids).logits
    model, _ = built(vision, llm=llm)
    assert model.model.language_model is llm.model
    assert model.model.vision_tower is vision
    assert model.lm_head is llm.lm_head
    assert model.generation_config is llm.generation_config
    for part, kept in zip((llm, vision), before, strict=True):
        assert all(torch.equal(kept[name], tensor) for name, tensor in part.state_dict().items())
    assert torch.equal(model(input_ids=ids).logits, expected)  # a text alone is read as it always was
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_stays_what_it_was(attention: str) -> None:
    llm, vision = tiny_llm(vocab_size=ROWS), tiny_vision()
    llm.set_attn_implementation(attention)
    vision.set_attn_implementation("eager")
    model, _ = built(vision, llm=llm)
    assert model.model.language_model.config._attn_implementation == attention
    assert model.model.vision_tower.config._attn_implementation == "eager"


def test_tied_embeddings_stay_tied() -> None:
    model, _ = tiny_baseline("gemma")
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.config.tie_word_embeddings


def towers() -> dict[str, Any]:
    sizes = SIZES | {"image_size": IMAGE_SIZE}
    return {
        "clip": tiny_vision(),
        "efficientnet": tiny_vision("efficientnet"),
        "siglip": AutoModel.from_config(SiglipVisionConfig(**sizes, intermediate_size=48)).eval(),
        "dinov2": AutoModel.from_config(Dinov2Config(**sizes)).eval(),
        "registers": AutoModel.from_config(Dinov2WithRegistersConfig(**sizes)).eval(),
    }


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("select", ["default", "full"])
@pytest.mark.parametrize("kind", ["clip", "efficientnet", "siglip", "dinov2", "registers"])
def test_visual_tokens_are_the_features_that_vlora_reads(kind: str, select: str, layer: int) -> None:
    vision = towers()[kind]
    if (kind, select) == ("registers", "default"):
        with pytest.raises(UnsupportedModel, match=r"has 5 positions before its patches.*_strategy: full"):
            built(vision, select=select)
        return
    model, processor = built(vision, feature_layer=layer, select=select)
    pixels = images(2)
    features = encode(vision, pixels, feature_layer=layer, select=select)
    looked = torch.stack(list(model.get_image_features(pixels, return_dict=True).pooler_output))
    assert torch.equal(looked, model.model.multi_modal_projector(features))
    assert model.config.image_seq_length == features.shape[1]
    prepared = processor(images=[picture()], text=["a<image>b"], return_tensors="pt")
    assert int((prepared["input_ids"] == model.config.image_token_id).sum()) == features.shape[1]


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 64),
        ({"image_size": 256}, 256),
        ({"stride": 32}, 16),
        ({"image_size": 100, "stages": (6,)}, 49),
        ({"stages": (3, 5, 7), "variant": "lite1"}, 64),
    ],
)
def test_visual_tokens_of_the_nano_encoder(options: dict[str, Any], tokens: int) -> None:
    config = EfficientNetLiteConfig(**options)
    model, processor = build_baseline(
        causal_lm=tiny_llm(vocab_size=ROWS),
        vision_tower=EfficientNetLiteModel(config),
        image_processor=image_processor(config.image_size),
        tokenizer=tiny_tokenizer(),
        chat_template=TEMPLATE,
    )
    assert model.config.image_seq_length == tokens
    prepared = processor(images=[picture()], text=["<image>what is this"], return_tensors="pt")
    assert int((prepared["input_ids"] == model.config.image_token_id).sum()) == tokens
    assert model(**prepared).logits.shape[1] == prepared["input_ids"].shape[1]


def test_the_projector_is_llavas() -> None:
    projector = tiny_baseline()[0].model.multi_modal_projector
    shapes = [(name, tuple(parameter.shape)) for name, parameter in projector.named_parameters()]
    assert shapes == [
        ("linear_1.weight", (48, 32)),
        ("linear_1.bias", (48,)),
        ("linear_2.weight", (48, 48)),
        ("linear_2.bias", (48,)),
    ]
    x = torch.randn(2, 3, 32)
    by_hand = torch.nn.functional.gelu(x @ projector.linear_1.weight.T + projector.linear_1.bias)
    by_hand = by_hand @ projector.linear_2.weight.T + projector.linear_2.bias
    torch.testing.assert_close(projector(x), by_hand, atol=1e-5, rtol=1e-5)


def test_what_llava_cannot_hold() -> None:
    with pytest.raises(UnsupportedModel, match="'gemma2' caps its logits"):
        built(tiny_vision(), llm=tiny_llm("gemma2", vocab_size=ROWS))
    with pytest.raises(UnsupportedModel, match="has no token to spare"):
        built(tiny_vision(), llm=tiny_llm(vocab_size=TEXT_VOCABULARY))


# -- the processor ------------------------------------------------------------------------------------


def test_places_are_those_of_transformers_processor() -> None:
    """What training expands is what LLaVA's processor makes of the same text."""
    model, processor = tiny_baseline()
    message = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "what is this"}, {"type": "image"}],
    }
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    assert text.count(processor.image_token) == 2
    ids = processor.tokenizer(text)["input_ids"]
    expanded, _ = expand_images(
        ids, ids, image_token_id=processor.image_token_id, tokens_per_image=model.config.image_seq_length
    )
    prepared = processor(images=[picture(0), picture(1)], text=[text])
    assert prepared["input_ids"][0] == expanded


def test_a_template_follows_the_token() -> None:
    _, processor = build_baseline(
        causal_lm=tiny_llm(vocab_size=TEXT_VOCABULARY),
        vision_tower=tiny_vision(),
        image_processor=tiny_processor().image_processor,
        tokenizer=tiny_tokenizer("<empty_output>"),
        chat_template=TEMPLATE,
    )
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}
    assert "<empty_output>what" in processor.apply_chat_template([message])
    assert processor.image_token_id < TEXT_VOCABULARY


# -- the checkpoint -----------------------------------------------------------------------------------

LOAD = """
    import sys
    {imports}
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor
    folder = sys.argv[1]
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(images=[Image.open(sys.argv[2])], text=["<image>what is this"], return_tensors="pt")
    print(type(model).__module__, type(processor).__name__, model(**inputs).logits.double().sum().item())
    assert "{absent}" not in sys.modules
"""


@pytest.mark.parametrize(
    ("vision", "family", "imports", "absent"),
    [
        ("clip", "llama", "", "vlora"),
        ("clip", "gemma", "", "vlora"),  # tied embeddings
        ("efficientnet", "llama", "import vlora", "ray"),
    ],
)
def test_transformers_loads_it_in_a_fresh_process(
    tmp_path: Path, vision: str, family: str, imports: str, absent: str
) -> None:
    model, processor = tiny_baseline(family, vision)
    folder, image = tmp_path / "llava", tmp_path / "image.png"
    picture().save(image)
    save_baseline(folder, model=model, processor=processor)
    inputs = processor(images=[picture()], text=["<image>what is this"], return_tensors="pt")
    expected = model(**inputs).logits.double().sum().item()
    module, kind, found = fresh_python(LOAD.format(imports=imports, absent=absent), folder, image).split()
    assert module == "transformers.models.llava.modeling_llava"
    assert kind == "LlavaProcessor"
    assert float(found) == pytest.approx(expected, rel=1e-6)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert fields["architectures"] == ["LlavaForConditionalGeneration"]
    assert fields["model_type"] == "llava"


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("vision", ["clip", "efficientnet"])
def test_weights_are_stored_by_the_names_of_transformers(tmp_path: Path, family: str, vision: str) -> None:
    model, processor = tiny_baseline(family, vision)
    save_baseline(tmp_path / "ours", model=model, processor=processor)
    LlavaForConditionalGeneration(model.config).save_pretrained(tmp_path / "plain")
    ours, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "plain"))
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: tensor.shape for n, tensor in plain.items()}
    assert "multi_modal_projector.linear_1.weight" in ours


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_another_precision_is_stored(tmp_path: Path, family: str) -> None:
    model, processor = tiny_baseline(family)
    save_baseline(tmp_path, model=model, processor=processor, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert ("language_model.lm_head.weight" in stored) is (family == "llama")  # tied, and so stored once
    assert model.dtype == torch.float32
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].to(torch.bfloat16)), name


def test_folders_of_the_parts_are_not_told(tmp_path: Path) -> None:
    tiny_llm(vocab_size=ROWS).save_pretrained(tmp_path / "secret")
    from transformers import AutoModelForCausalLM

    model, processor = built(tiny_vision(), llm=AutoModelForCausalLM.from_pretrained(tmp_path / "secret"))
    save_baseline(tmp_path / "llava", model=model, processor=processor)
    for file in (tmp_path / "llava").glob("*.json"):
        assert "secret" not in file.read_text(encoding="utf-8"), file
    assert AutoConfig.from_pretrained(tmp_path / "llava").image_seq_length == 16
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "llava"), LlavaProcessor)


# -- it looks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", ["clip", "efficientnet"])
def test_it_looks(vision: str) -> None:
    """Learns a handful of pairs with its projector alone, and loses them when the images are shuffled."""
    count = 6
    model, _ = tiny_baseline(vision=vision)
    model.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    answers = [(10 + 2 * number, 11 + 2 * number) for number in range(count)]
    batch = batch_of(model, [([-1, 5, 6, *answer], 2) for answer in answers])
    pixels = images(count)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-2, weight_decay=0.0)
    losses: list[float] = []
    for _ in range(120):
        loss = baseline_loss(model, batch | {"pixel_values": pixels})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    def correct(seen: torch.Tensor) -> float:
        prompt = batch["input_ids"][:, :-2]
        written = model.generate(input_ids=prompt, pixel_values=seen, max_new_tokens=2, do_sample=False)[:, -2:]
        return (written == torch.tensor(answers)).all(1).float().mean().item()

    print(f"{vision}: loss {losses[0]:.2f} -> {losses[-1]:.4f}")
    assert correct(pixels) == 1
    assert correct(pixels.roll(1, 0)) == 0
    assert correct(torch.zeros_like(pixels)) <= 1 / count
