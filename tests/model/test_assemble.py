"""A model from its parts, the generator-only checkpoint, and what is wrong with a damaged one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, GPT2Config, GPT2LMHeadModel

from tests.helpers import (
    add_noise,
    images,
    tiny_generator_config,
    tiny_llm,
    tiny_model,
    tiny_processor,
    tiny_vision,
    token_ids,
)
from vlora.errors import CheckpointError, ModelNotFound, UnsupportedModel
from vlora.model import VLoRAForConditionalGeneration
from vlora.model.assemble import (
    FORMAT_VERSION,
    GENERATOR_FILE,
    PARTS_FILE,
    Part,
    assemble,
    fingerprint,
    load_generator,
    load_image_processor,
    load_language_model,
    load_vision_tower,
    parts_of,
    read_parts,
    save_generator,
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a Llama (`llm`), of a whole CLIP (`clip`) and of its vision tower alone (`vision`)."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(5)
    tiny_llm().save_pretrained(folder / "llm")
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tiny_vision().config.to_dict()
    clip = CLIPModel(CLIPConfig(text_config=text | {"vocab_size": 30}, vision_config=vision, projection_dim=8))
    clip.save_pretrained(folder / "clip")
    alone = tiny_vision()
    alone.load_state_dict(
        {name: clip.state_dict()[_name_in_clip(name, clip)] for name in alone.state_dict()}, strict=True
    )
    alone.save_pretrained(folder / "vision")
    return folder


def _name_in_clip(name: str, clip: CLIPModel) -> str:
    return name if name in clip.state_dict() else f"vision_model.{name}"


def _load(parts: Path, vision: str = "vision") -> VLoRAForConditionalGeneration:
    return assemble(
        causal_lm=load_language_model(parts / "llm"),
        vision_tower=load_vision_tower(parts / vision),
        generator=tiny_generator_config(targets=("q", "mlp")),
    )


@torch.no_grad()
def test_the_vision_tower_of_a_whole_clip_is_that_of_its_own_folder(parts: Path) -> None:
    whole, alone = load_vision_tower(parts / "clip"), load_vision_tower(parts / "vision")
    assert type(whole) is type(alone)
    pixels = images(2)
    assert torch.equal(whole(pixel_values=pixels).last_hidden_state, alone(pixel_values=pixels).last_hidden_state)
    assert fingerprint(whole) == fingerprint(alone)
    whole_clip = CLIPModel.from_pretrained(parts / "clip")
    expected = whole_clip.vision_model(pixel_values=pixels).last_hidden_state
    assert torch.equal(whole(pixel_values=pixels).last_hidden_state, expected)


@pytest.mark.parametrize("vision", ["vision", "clip"])
@torch.no_grad()
def test_parts_keep_their_weights(parts: Path, vision: str) -> None:
    model, llm = _load(parts, vision), load_language_model(parts / "llm")
    assert fingerprint(model.model.language_model) == fingerprint(llm.model)
    assert fingerprint(model.model.vision_tower) == fingerprint(load_vision_tower(parts / vision))
    ids = token_ids(2, 6)
    assert torch.equal(model(input_ids=ids, pixel_values=images(2)).logits, llm(input_ids=ids).logits)
    assert not model.training
    assert all(
        module.config._attn_implementation == "sdpa"
        for module in (model.model.language_model, model.model.vision_tower)
    )


def test_parts_load_in_the_wanted_precision(parts: Path) -> None:
    assert load_language_model(parts / "llm", torch.bfloat16).dtype == torch.bfloat16
    assert load_vision_tower(parts / "clip", torch.bfloat16).dtype == torch.bfloat16


def test_parts_that_are_not_there_or_cannot_wear(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="There is no model"):
        load_language_model(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match="There is no model"):
        load_vision_tower(tmp_path)
    with pytest.raises(ModelNotFound, match=r"no preprocessor_config\.json"):
        load_image_processor(tmp_path)
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UnsupportedModel, match="'gpt2'"):
        load_language_model(tmp_path / "gpt2")


@pytest.fixture(scope="module")
def saved(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VLoRAForConditionalGeneration]:
    """A generator-only checkpoint, and the model it was saved from."""
    model = _load(parts)
    add_noise(model, 0.1)
    folder = tmp_path_factory.mktemp("saved") / "deep" / "generator"
    identity = parts_of(model, language_model=str(parts / "llm"), vision=str(parts / "vision"))
    save_generator(folder, model, tiny_processor(), identity)
    return folder, model


def _again(folder: Path, parts: Path) -> VLoRAForConditionalGeneration:
    return load_generator(
        folder, causal_lm=load_language_model(parts / "llm"), vision_tower=load_vision_tower(parts / "clip")
    )


@torch.no_grad()
def test_a_generator_only_checkpoint_gives_back_the_model(
    saved: tuple[Path, VLoRAForConditionalGeneration], parts: Path
) -> None:
    folder, model = saved
    again = _again(folder, parts)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    ids, pixels = token_ids(2, 6), images(2)
    assert torch.equal(
        again(input_ids=ids, pixel_values=pixels).logits, model(input_ids=ids, pixel_values=pixels).logits
    )
    assert again.config.generator_config.to_dict() == model.config.generator_config.to_dict()
    assert not again.training
    assert read_parts(folder).language_model == Part(str(parts / "llm"), fingerprint(model.model.language_model))
    assert (folder / "chat_template.jinja").read_text() == tiny_processor().chat_template
    assert load_image_processor(folder).size == tiny_processor().image_processor.size
    assert set(load_file(folder / GENERATOR_FILE)) == set(model.model.generator.state_dict())


@torch.no_grad()
def test_it_can_be_stored_in_half_the_bytes(
    saved: tuple[Path, VLoRAForConditionalGeneration], parts: Path, tmp_path: Path
) -> None:
    folder, model = saved
    save_generator(tmp_path, model, tiny_processor(), read_parts(folder), dtype=torch.bfloat16)
    half, full = ((where / GENERATOR_FILE).stat().st_size for where in (tmp_path, folder))
    assert half < 0.7 * full
    again = _again(tmp_path, parts)
    for name, tensor in model.model.generator.state_dict().items():
        own = again.model.generator.state_dict()[name]
        assert own.dtype == torch.float32
        assert torch.equal(own, tensor.bfloat16().float())


def test_it_fits_the_same_parts_in_bfloat16(saved: tuple[Path, VLoRAForConditionalGeneration], parts: Path) -> None:
    model = load_generator(
        saved[0],
        causal_lm=load_language_model(parts / "llm", torch.bfloat16),
        vision_tower=load_vision_tower(parts / "clip", torch.bfloat16),
    )
    assert model.model.generator.dtype == torch.float32
    with torch.no_grad():
        assert model(input_ids=token_ids(1, 5), pixel_values=images(1)).logits.dtype == torch.bfloat16


def test_another_language_model_or_encoder_is_refused(
    saved: tuple[Path, VLoRAForConditionalGeneration], parts: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"made for the language model .*llm \(fingerprint"):
        load_generator(saved[0], causal_lm=tiny_llm(), vision_tower=load_vision_tower(parts / "vision"))
    with pytest.raises(CheckpointError, match="made for the vision encoder"):
        load_generator(saved[0], causal_lm=load_language_model(parts / "llm"), vision_tower=tiny_vision())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def _reshape(state: dict[str, torch.Tensor]) -> None:
    state["positions"] = state["positions"][:3].clone()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "is missing"),
    "truncated": (_truncate, "is damaged"),
    "text": (lambda path: path.write_text("version https://git-lfs"), "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "lacking": (lambda path: _edit(path, lambda state: state.pop("positions")), "lacks 'positions'"),
    "lacking two": (
        lambda path: _edit(path, lambda state: (state.pop("positions"), state.pop("project.bias"))),
        "lacks 'positions' and 1 more",
    ),
    "extra": (lambda path: _edit(path, lambda s: s.update(own=torch.zeros(1))), "has the unknown 'own'"),
    "shape": (lambda path: _edit(path, _reshape), "has a wrong shape for 'positions'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused(
    damage: str, saved: tuple[Path, VLoRAForConditionalGeneration], parts: Path, tmp_path: Path
) -> None:
    act, message = DAMAGES[damage]
    save_generator(tmp_path, saved[1], tiny_processor(), read_parts(saved[0]))
    act(tmp_path / GENERATOR_FILE)
    with pytest.raises(CheckpointError, match=f"{GENERATOR_FILE} {message}"):
        _again(tmp_path, parts)


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "{}", '{"format_version": 1, "language_model": {}, "vision": {}}', "null"]
)
def test_a_damaged_record_of_the_parts_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / PARTS_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="missing or damaged"):
        read_parts(tmp_path)


def test_a_later_format_is_refused(saved: tuple[Path, VLoRAForConditionalGeneration], tmp_path: Path) -> None:
    record = json.loads((saved[0] / PARTS_FILE).read_text())
    assert record["format_version"] == FORMAT_VERSION
    record["format_version"] = FORMAT_VERSION + 1
    (tmp_path / PARTS_FILE).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="update vlora"):
        read_parts(tmp_path)


def test_fingerprints_tell_models_apart_but_not_precisions() -> None:
    one, other = tiny_model(targets=("q",)), tiny_model(targets=("q",), seed=1)
    llm = one.model.language_model
    before = fingerprint(llm)
    assert before == fingerprint(llm) != fingerprint(other.model.language_model)
    assert before != fingerprint(tiny_llm("mistral").model)
    assert fingerprint(llm.to(torch.bfloat16)) == before
    assert fingerprint(llm.to(torch.float32)) == before
    with torch.no_grad():
        llm.layers[2].mlp.up_proj.weight.mul_(1.1)
    assert fingerprint(llm) != before
