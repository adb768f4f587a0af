"""The authors' own numbers (see `fixtures/README.md`): factors, logits, loss and greedy ids, given their features; and
a whole checkpoint of theirs, converted: pixels, features, logits and answer, given an image and a question.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig, DynamicCache, LlamaConfig

from vlora.export import convert_authors
from vlora.export.authors import TARGET_OF, generator_config, generator_origins
from vlora.model import PerceptualWeights, VLoRAConfig, VLoRAForConditionalGeneration

FIXTURES = Path(__file__).parent / "fixtures"
OFFICIAL = FIXTURES / "official_checkpoint"
IMAGE = -200  # what marks the place of an image in their ids
NAMES = ("separate_qkvom", "joint_qkv")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
NEW = 8
HAS_IMAGE = torch.tensor([0, 1, -1])  # row 2 has none


class Case(NamedTuple):
    """A model with their weights, what they computed, and the sizes."""

    model: VLoRAForConditionalGeneration
    theirs: dict[str, Tensor]
    config: dict[str, Any]

    @property
    def weights(self) -> PerceptualWeights:
        return self.model.model.generator(self.theirs["features"])

    @property
    def rows(self) -> dict[str, Any]:
        inputs = {name: self.theirs[name] for name in ("input_ids", "attention_mask")}
        return inputs | {"perceptual_weights": self.weights.rows(HAS_IMAGE)}


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    path = FIXTURES / f"{request.param}.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    theirs = load_file(path)
    llm = {name: config[name] for name in LlamaConfig().to_dict() if name in config}
    side = round(config["vlora_pos_num"] ** 0.5)
    vision = CLIPVisionConfig(  # a stand-in: the features are given
        hidden_size=config["vlora_visual_dim"],
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=8 * side,
        patch_size=8,
    )
    model = VLoRAForConditionalGeneration(
        VLoRAConfig(
            vision_config=vision,
            text_config=LlamaConfig(**llm),
            generator_config=generator_config(config, str(path)),
            image_placeholder="mask",
            image_token_id=config["image_token_index"],
        )
    ).eval()
    _fill(model, theirs, config)
    return Case(model, theirs, config)


def _fill(model: VLoRAForConditionalGeneration, theirs: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Every number of theirs is used, and every parameter of ours is theirs."""
    generator = model.model.generator
    stored = {k.removeprefix("generator."): v for k, v in theirs.items() if k.startswith("generator.")}
    shapes = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    origins = generator_origins(shapes, letters=config["vlora_type"], layers=generator.layers)
    assert {origin.key for origin in origins.values()} == stored.keys()
    assert all(tuple(stored[origin.key].shape) == origin.shape for origin in origins.values())
    generator.load_state_dict({name: origin.of(stored[origin.key]) for name, origin in origins.items()})
    llm = {k.removeprefix("model."): v for k, v in theirs.items() if k.startswith("model.") and "inv_freq" not in k}
    model.lm_head.weight.data = llm.pop("lm_head.weight")
    model.model.language_model.load_state_dict({k.removeprefix("model."): v for k, v in llm.items()})


@torch.no_grad()
def test_factors(case: Case) -> None:
    names = [name for name in case.theirs if name.startswith("perceptual.")]
    assert len(names) == 2 * len(case.weights.layout.places)
    for name in names:
        _, layer, letter, factor = name.split(".")
        a, b = case.weights.factors(int(layer), TARGET_OF[letter])
        ours = a if factor == "A" else case.weights.layout.scale * b.T
        torch.testing.assert_close(ours, case.theirs[name], **TOLERANCE)


@torch.no_grad()
def test_logits(case: Case) -> None:
    """Within 1e-5, but for the few positions that the last digit of float32 moves further (2e-5 on some processors)."""
    logits = case.model(**case.rows).logits
    real = case.theirs["attention_mask"].bool()
    difference = (logits - case.theirs["logits"]).abs().amax(-1)[real]
    allowed = TOLERANCE["atol"] + 10 * _last_digit(case, logits)[real]
    assert (difference < allowed).all()
    assert difference.median() < TOLERANCE["atol"]
    assert allowed.median() < 1e-3  # of logits that another image moves by tenths


def _last_digit(case: Case, logits: Tensor) -> Tensor:
    """How far logits move `[rows, text]` when embeddings and features change in their last digit."""
    moved = torch.zeros(logits.shape[:2])
    for _ in range(8):
        model = copy.deepcopy(case.model)
        embeddings = model.get_input_embeddings()
        embeddings.weight.data = _nudged(embeddings.weight.data)
        weights = model.model.generator(_nudged(case.theirs["features"])).rows(HAS_IMAGE)
        moved = moved.maximum((model(**case.rows | {"perceptual_weights": weights}).logits - logits).abs().amax(-1))
    return moved


@torch.no_grad()
def test_loss(case: Case) -> None:
    loss = case.model(**case.rows, labels=case.theirs["labels"]).loss
    torch.testing.assert_close(loss, case.theirs["loss"][0], **TOLERANCE)


@torch.no_grad()
def test_text_alone(case: Case) -> None:
    logits = case.model(input_ids=case.theirs["input_ids"][2:]).logits
    torch.testing.assert_close(logits, case.theirs["text_only_logits"], **TOLERANCE)


@torch.no_grad()
def test_the_image_matters_in_these_numbers(case: Case) -> None:
    others = case.rows | {"perceptual_weights": case.weights.rows(torch.tensor([1, 0, -1]))}
    real = case.theirs["attention_mask"].bool()
    difference = (case.model(**others).logits - case.theirs["logits"])[real]
    assert difference.abs().max() > 100 * TOLERANCE["atol"]


@pytest.mark.parametrize("row", [0, 1])
def test_greedy_ids_step_by_step(case: Case, row: int) -> None:
    ids, expected = _prompt(case, row)
    assert greedy_by_hand(case.model, ids, case.weights[row]) == expected
    # The tokens tell how they are numbered: counted by place, as in the prompt, they are others.
    assert greedy_by_hand(case.model, ids, case.weights[row], by_place=True) != expected


@pytest.mark.parametrize("row", [0, 1])
def test_greedy_ids(case: Case, row: int) -> None:
    ids, expected = _prompt(case, row)
    wishes: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    written = case.model.generate(ids, perceptual_weights=case.weights[row], **wishes)
    assert written[0, -NEW:].tolist() == expected


def _prompt(case: Case, row: int) -> tuple[Tensor, list[int]]:
    ids = case.theirs["input_ids"][row : row + 1, : int(case.theirs["attention_mask"][row].sum())]
    return ids, case.theirs[f"generated.{row}"][-NEW:].tolist()


@torch.no_grad()
def greedy_by_hand(
    model: VLoRAForConditionalGeneration, ids: Tensor, weights: PerceptualWeights, *, by_place: bool = False
) -> list[int]:
    """Ids that a cached loop writes, with the position numbers of the authors' code.

    In the prompt the place of the image has a number. New tokens are numbered by how many places are attended to, so
    the first one repeats the number of the prompt's last.
    """
    llm: Any = model.model.language_model
    image = ids == model.config.image_token_id
    attended, cache = (~image).long(), DynamicCache()
    step, numbers = ids.masked_fill(image, 0), torch.arange(ids.shape[1])[None]
    written: list[int] = []
    for count in range(NEW):
        hidden = llm(
            input_ids=step,
            attention_mask=attended,
            position_ids=numbers,
            past_key_values=cache,
            use_cache=True,
            perceptual_weights=weights,
        ).last_hidden_state
        step = model.lm_head(hidden[:, -1:]).argmax(-1)
        written.append(int(step))
        attended = torch.cat([attended, torch.ones_like(step)], dim=1)
        numbers = torch.tensor([[ids.shape[1] + count]]) if by_place else attended.sum(1, keepdim=True) - 1
    return written


class Official(NamedTuple):
    """A whole checkpoint of theirs, converted, and what their code answers."""

    model: VLoRAForConditionalGeneration
    inputs: dict[str, Tensor]
    theirs: dict[str, Tensor]

    @property
    def given(self) -> dict[str, Tensor]:
        """Their pixels, and their tokens."""
        image = self.theirs["input_ids"] == IMAGE
        ids = self.theirs["input_ids"].masked_fill(image, self.model.config.image_token_id)
        return {"input_ids": ids, "pixel_values": self.theirs["pixel_values"]}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Official:
    folder = tmp_path_factory.mktemp("official") / "converted"
    convert_authors(OFFICIAL / "checkpoint", folder)
    # Attention in the order of their sums; what else there is differs in the last digits only.
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    processor = AutoProcessor.from_pretrained(folder)
    expected = json.loads((OFFICIAL / "expected.json").read_text())
    content = [{"type": "image"}, {"type": "text", "text": expected["question"]}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert prompt == expected["prompt"]
    inputs = processor(images=Image.open(OFFICIAL / "image.png"), text=prompt, return_tensors="pt")
    return Official(model, dict(inputs), load_file(OFFICIAL / "expected.safetensors"))


def test_official_pixels_and_tokens(official: Official) -> None:
    """Padded to a square and resampled by Pillow, as theirs: what is left is the rounding of a float."""
    assert official.theirs["pixel_values"].shape == (1, 3, 28, 28)
    torch.testing.assert_close(official.inputs["pixel_values"], official.theirs["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(official.inputs["input_ids"], official.given["input_ids"])


@torch.no_grad()
def test_official_features(official: Official) -> None:
    features = official.model.get_image_features(official.theirs["pixel_values"]).last_hidden_state
    torch.testing.assert_close(features, official.theirs["features"], **TOLERANCE)


@torch.no_grad()
def test_official_logits(official: Official) -> None:
    """Within 1e-5, and what the last digit of float32 makes of itself.

    This random model is ill-conditioned: where one unit in the last digit of its embeddings and features moves our own
    logits by 1e-3, no two programs agree to 1e-5. So each position is held to its own sensitivity.
    """
    ours = official.model(**official.given).logits
    difference = (ours - official.theirs["logits"]).abs().amax(-1)
    allowed = TOLERANCE["atol"] + 10 * _sensitivity(official, ours)
    assert (difference < allowed).all()
    assert allowed.median() < 1e-3  # of logits up to 4.7
    others = official.given | {"pixel_values": official.theirs["pixel_values"].flip(-1)}
    assert not ((official.model(**others).logits - official.theirs["logits"]).abs().amax(-1) < allowed)[:, 1:].any()


def _sensitivity(official: Official, logits: Tensor) -> Tensor:
    """How far each position's logits move `[1, text]` when embeddings and features change in their last digit."""
    image, moved = official.theirs["input_ids"] == IMAGE, torch.zeros(logits.shape[:2])
    embeddings = official.model.get_input_embeddings()(official.theirs["input_ids"].masked_fill(image, 0))
    features = official.theirs["features"]
    for _ in range(8):
        nudged = official.model(
            inputs_embeds=_nudged(embeddings),
            attention_mask=(~image).long(),
            position_ids=torch.arange(logits.shape[1])[None],
            perceptual_weights=official.model.model.generator(_nudged(features)),
        ).logits
        moved = moved.maximum((nudged - logits).abs().amax(-1))
    return moved


def _nudged(values: Tensor) -> Tensor:
    return values * (1 + torch.finfo(values.dtype).eps / 2 * torch.randn_like(values))


@torch.no_grad()
def test_official_answer(official: Official) -> None:
    expected = official.theirs["generated"].tolist()
    for inputs in (official.inputs, official.given):
        written = official.model.generate(**inputs, max_new_tokens=len(expected), do_sample=False)
        assert written[0, -len(expected) :].tolist() == expected
