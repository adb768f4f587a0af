"""The joined model: its folder, its losses, and the idioms of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageTextToText, pipeline

from tests.helpers import (
    TEXT_VOCABULARY,
    add_noise,
    fresh_python,
    images,
    padded,
    picture,
    plain_llm,
    shared_model,
    tiny_generator_config,
    tiny_llm,
    tiny_model,
    tiny_processor,
    tiny_vision,
    token_ids,
)
from vlora.errors import InputError
from vlora.model import PerceptualWeights, VLoRAForConditionalGeneration, VLoRAModel
from vlora.model.assemble import assemble

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"targets": ("q", "k", "mlp")}),
    ("gemma2", {"targets": ("v", "o"), "norms": True, "static_rank": 2}),
    ("qwen3", {"targets": ("gate", "down"), "queries": "joint", "vision": "efficientnet"}),
]


# ---- the folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "options"), KINDS)
@torch.no_grad()
def test_a_folder_gives_back_the_model_to_the_last_bit(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(family, **options)
    model.save_pretrained(tmp_path)
    ids, pixels = token_ids(2, 6), images(2)
    expected = model(input_ids=ids, pixel_values=pixels).logits
    for loader in (VLoRAForConditionalGeneration, AutoModelForImageTextToText):
        again, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert type(again) is VLoRAForConditionalGeneration
        assert again.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(again(input_ids=ids, pixel_values=pixels).logits, expected)
        tied = again.lm_head.weight is again.model.language_model.embed_tokens.weight
        assert tied == model.config.text_config.tie_word_embeddings

    body = AutoModel.from_pretrained(tmp_path)
    assert type(body) is VLoRAModel
    hidden = model.model(input_ids=ids, pixel_values=pixels).last_hidden_state
    assert torch.equal(body(input_ids=ids, pixel_values=pixels).last_hidden_state, hidden)


def test_b_comes_from_the_folder_and_not_from_the_dice(tmp_path: Path) -> None:
    model = tiny_model(targets=("q",))
    model.save_pretrained(tmp_path)
    again = VLoRAForConditionalGeneration.from_pretrained(tmp_path)
    for name, b in model.model.generator.b.items():
        assert b.any()
        assert torch.equal(again.model.generator.b[name], b)


def test_what_a_folder_lacks_is_made_fresh_and_named(tmp_path: Path) -> None:
    model = tiny_model(targets=("q",))
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lacking = ["model.generator.b.layer1_q", "model.generator.project.weight", "model.generator.positions"]
    save_file(
        {name: t for name, t in state.items() if name not in lacking}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    again, info = VLoRAForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert sorted(info["missing_keys"]) == sorted(lacking)
    generator = again.model.generator
    assert not generator.b["layer1_q"].any()
    assert 0.01 < generator.project.weight.std() < 0.03
    assert generator.positions.std() > 0.3
    assert torch.equal(generator.b["layer3_q"], model.model.generator.b["layer3_q"])


@torch.no_grad()
def test_a_folder_loads_in_bfloat16(tmp_path: Path) -> None:
    model = tiny_model(targets=("q",))
    model.save_pretrained(tmp_path)
    half = VLoRAForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    in_float32 = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    assert in_float32 == {name for name, _ in half.named_parameters() if name.startswith("model.generator.")}
    assert half(input_ids=token_ids(1, 5), pixel_values=images(1)).logits.isfinite().all()


@torch.no_grad()
def test_a_fresh_process_computes_the_same_bits(tmp_path: Path) -> None:
    model = tiny_model(targets=("q", "mlp"))
    model.save_pretrained(tmp_path)
    ids, pixels = token_ids(2, 6), images(2)
    save_file({"ids": ids, "pixels": pixels}, tmp_path / "inputs")
    told = fresh_python(
        """
        import sys
        import torch
        import vlora
        from safetensors.torch import load_file, save_file
        from transformers import AutoModelForImageTextToText
        torch.set_num_threads(2)
        inputs = load_file(sys.argv[1] + "/inputs")
        model, info = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)
        with torch.no_grad():
            logits = model(input_ids=inputs["ids"], pixel_values=inputs["pixels"]).logits
        save_file({"logits": logits}, sys.argv[1] + "/outputs")
        print(type(model).__name__, len(info["missing_keys"]))
        """,
        tmp_path,
    )
    assert told.splitlines()[-1] == "VLoRAForConditionalGeneration 0"
    assert torch.equal(load_file(tmp_path / "outputs")["logits"], model(input_ids=ids, pixel_values=pixels).logits)


# ---- losses and outputs -----------------------------------------------------------------------------


def _labelled() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Rows of 9, 5 and 7 tokens; answers of 3, 1 and no tokens."""
    batch = padded([token_ids(1, length, seed=length)[0] for length in (9, 5, 7)], "left")
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, -3:], labels[1, -1:] = batch["input_ids"][0, -3:], batch["input_ids"][1, -1:]
    return batch, labels


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@torch.no_grad()
def test_the_loss_of_supervised_positions_is_a_mean_per_row_then_over_rows(family: str) -> None:
    model = shared_model(family)
    batch, labels = _labelled()
    index = torch.tensor([1, 0, 1])
    logits = model(**batch, pixel_values=images(2), image_index=index).logits
    first = torch.stack([-logits[0, t - 1].log_softmax(-1)[labels[0, t]] for t in (6, 7, 8)]).mean()
    second = -logits[1, 7].log_softmax(-1)[labels[1, 8]]

    out = model(**batch, pixel_values=images(2), image_index=index, labels=labels, supervised_only=True)
    torch.testing.assert_close(out.loss, (first + second) / 2, rtol=1e-5, atol=1e-5)
    supervised = torch.cat([logits[0, 5:8], logits[1, 7:8]])
    torch.testing.assert_close(out.logits, supervised, rtol=1e-5, atol=1e-5)


def test_a_batch_without_supervision_has_no_loss_and_a_gradient_of_zero() -> None:
    model = tiny_model(targets=("q",))
    batch, labels = _labelled()
    out = model(**batch, pixel_values=images(3), labels=torch.full_like(labels, -100), supervised_only=True)
    out.loss.backward()
    assert out.loss == 0
    assert all(not b.grad.any() for b in model.model.generator.b.values())


@torch.no_grad()
def test_the_first_token_is_never_supervised() -> None:
    """No position predicts it; a label there must not wrap around to another row."""
    model = shared_model()
    ids = token_ids(2, 6)
    labels = torch.full_like(ids, -100)
    labels[:, 0] = ids[:, 0]
    out = model(input_ids=ids, labels=labels, supervised_only=True)
    assert out.logits.shape[0] == 0
    assert out.loss == 0


@torch.no_grad()
def test_the_plain_loss_is_that_of_the_plain_model() -> None:
    model = shared_model()
    batch, labels = _labelled()
    out = model(**batch, labels=labels)
    torch.testing.assert_close(out.loss, plain_llm(model)(**batch, labels=labels).loss)
    shifted = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, shifted)


@torch.no_grad()
def test_logits_of_the_last_positions_only() -> None:
    model, ids, pixels = shared_model(), token_ids(2, 6), images(2)
    logits = model(input_ids=ids, pixel_values=pixels).logits
    last = model(input_ids=ids, pixel_values=pixels, logits_to_keep=2).logits
    torch.testing.assert_close(last, logits[:, -2:])
    picked = model(input_ids=ids, pixel_values=pixels, logits_to_keep=torch.tensor([0, 3])).logits
    torch.testing.assert_close(picked, logits[:, [0, 3]])


@torch.no_grad()
def test_outputs() -> None:
    model, ids, pixels = shared_model(), token_ids(2, 6), images(2)
    out = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True, use_cache=True)
    assert len(out.hidden_states) == 5
    assert out.past_key_values.get_seq_length() == 6
    assert torch.equal(out.perceptual_weights, model.expand(model.perceive(pixels)).values)
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)
    assert model(input_ids=ids).perceptual_weights is None
    features = model.get_image_features(pixels)
    assert features.last_hidden_state.shape == (2, 16, 32)
    assert torch.equal(features.pooler_output, model.perceive(pixels).values)


@torch.no_grad()
def test_embeddings_in_place_of_ids() -> None:
    model, ids, pixels = shared_model(), token_ids(2, 6), images(2)
    embeds = model.get_input_embeddings()(ids)
    expected = model(input_ids=ids, pixel_values=pixels).logits
    assert torch.equal(model(inputs_embeds=embeds, pixel_values=pixels).logits, expected)
    with pytest.raises(InputError, match="exactly one"):
        model(input_ids=ids, inputs_embeds=embeds)
    with pytest.raises(InputError, match="exactly one"):
        model(pixel_values=pixels)
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "pixel_values": pixels}
    assert torch.equal(model.generate(inputs_embeds=embeds, **options), model.generate(ids, **options)[:, 6:])


@torch.no_grad()
def test_more_words() -> None:
    model, ids, pixels = tiny_model(targets=("q",)), token_ids(2, 6), images(2)
    expected = model(input_ids=ids, pixel_values=pixels).logits
    model.resize_token_embeddings(110)
    assert model.config.text_config.vocab_size == 110
    logits = model(input_ids=ids, pixel_values=pixels, labels=ids).logits
    torch.testing.assert_close(logits[..., :101], expected)


# ---- generation -------------------------------------------------------------------------------------


@torch.no_grad()
def test_generation_looks_once_and_wears_at_every_step() -> None:
    model, ids, pixels = shared_model(), token_ids(2, 5), images(2)
    looks: list[Any] = []
    worn: list[Any] = []
    handles = [
        model.model.vision_tower.register_forward_hook(lambda *_: looks.append(1)),
        model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: worn.append(kwargs["perceptual_weights"].values), with_kwargs=True
        ),
    ]
    model.generate(ids, pixel_values=pixels, max_new_tokens=5, do_sample=False)
    for handle in handles:
        handle.remove()
    assert len(looks) == 1
    assert len(worn) == 5
    assert all(torch.equal(values, worn[0]) for values in worn)
    assert not torch.equal(
        model.generate(ids, pixel_values=pixels, max_new_tokens=5, do_sample=False),
        model.generate(ids, pixel_values=pixels.flip(0), max_new_tokens=5, do_sample=False),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full checkpoint with a processor."""
    path = tmp_path_factory.mktemp("folder")
    torch.manual_seed(0)
    model = assemble(
        causal_lm=tiny_llm(vocab_size=TEXT_VOCABULARY),
        vision_tower=tiny_vision(),
        generator=tiny_generator_config(targets=("q", "v", "mlp")),
    )
    add_noise(model, 0.2)
    model.save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


def _chat(seed: int) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture(seed)}, {"type": "text", "text": "what is this"}]
    return [{"role": "user", "content": content}]


@torch.no_grad()
def test_the_pipeline(folder: Path) -> None:
    pipe = pipeline("image-text-to-text", model=str(folder))
    options: dict[str, Any] = {"return_full_text": False, "generate_kwargs": {"do_sample": False, "max_new_tokens": 6}}
    answers = [pipe(text=_chat(seed), **options)[0]["generated_text"] for seed in (0, 1)]

    model = VLoRAForConditionalGeneration.from_pretrained(folder)
    processor = tiny_processor()
    for seed, answer in enumerate(answers):
        batch = processor.apply_chat_template(
            _chat(seed),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt"},
        )
        written = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(written[0], skip_special_tokens=True) == answer
    assert answers[0] != answers[1]

    plain = pipe(images=picture(0), text="<image>what is this", **options)
    assert isinstance(plain[0]["generated_text"], str)


@pytest.mark.parametrize("index", [[0, 2], [0, -2], [5, 5]])
def test_an_image_that_is_not_there_is_refused(index: list[int]) -> None:
    with pytest.raises(InputError, match="there are 2, counted from 0"):
        shared_model()(input_ids=token_ids(2, 5), pixel_values=images(2), image_index=torch.tensor(index))


def test_generate_refuses_weights_of_another_model() -> None:
    model = shared_model()
    own = model.expand(model.perceive(images(1)))
    foreign = PerceptualWeights(own.values, own.layout, {place: b * 2 for place, b in own.shared.items()})
    with pytest.raises(InputError, match="own B"):
        model.generate(input_ids=token_ids(1, 5), perceptual_weights=foreign, max_new_tokens=2, pad_token_id=0)
    other = tiny_model(rank=2)
    with pytest.raises(InputError, match="belong to another model"):
        model.generate(
            input_ids=token_ids(1, 5),
            perceptual_weights=other.expand(other.perceive(images(1))),
            max_new_tokens=2,
            pad_token_id=0,
        )
