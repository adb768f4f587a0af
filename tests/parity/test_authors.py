"""The authors' own numbers (see `fixtures/README.md`): factors, logits, loss and greedy ids, given their features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from vlora.export.authors import TARGET_OF, generator_config, generator_origins
from vlora.model import PerceptualWeights, VLoRAConfig, VLoRAForConditionalGeneration

FIXTURES = Path(__file__).parent / "fixtures"
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
    logits = case.model(**case.rows).logits
    real = case.theirs["attention_mask"].bool()
    torch.testing.assert_close(logits[real], case.theirs["logits"][real], **TOLERANCE)


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
def test_greedy_ids(case: Case, row: int) -> None:
    ids = case.theirs["input_ids"][row : row + 1, : int(case.theirs["attention_mask"][row].sum())]
    written = case.model.generate(
        ids, perceptual_weights=case.weights[row], max_new_tokens=NEW, do_sample=False, eos_token_id=None
    )
    expected = case.theirs[f"generated.{row}"]
    assert torch.equal(written[0, -NEW:], expected[-NEW:])
