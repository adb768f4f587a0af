"""Their names and ours: any order of `vlora_type` gives the same model, and wrong settings are all told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from vlora.errors import ConfigError
from vlora.export.authors import TARGET_OF, generator_config, generator_origins
from vlora.model.generator import PerceptualWeightsGenerator
from vlora.model.weights import Place

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
GOOD: dict[str, Any] = {
    "vlora_dim": 32,
    "vlora_depth": 2,
    "vlora_rank": 4,
    "vlora_alpha": 8,
    "vlora_visual_dim": 24,
    "vlora_pos_num": 9,
    "vlora_type": "qkvom",
    "skip_layers": 2,
    "weights_sep": True,
}


def _theirs(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = FIXTURES / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        fields = json.loads(file.metadata()["config"])
    tensors = {k.removeprefix("generator."): v for k, v in load_file(path).items() if k.startswith("generator.")}
    return tensors, fields


def _ours(theirs: dict[str, Tensor], fields: dict[str, Any]) -> dict[str, Tensor]:
    config = generator_config(fields, "the test")
    layers, width = config.worn_layers(fields["num_hidden_layers"]), fields["hidden_size"]
    places = tuple(Place(layer, target, width, width) for layer in layers for target in config.targets)
    generator = PerceptualWeightsGenerator(
        config, vision_dim=fields["vlora_visual_dim"], patches=fields["vlora_pos_num"], places=places
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    origins = generator_origins(shapes, letters=fields["vlora_type"], layers=layers)
    return {name: origin.of(theirs[origin.key]) for name, origin in origins.items()}


def _reordered(theirs: dict[str, Tensor], fields: dict[str, Any], letters: str) -> dict[str, Tensor]:
    """The same model as their code would have stored it for the same letters in another order."""
    old = fields["vlora_type"]
    blocks = theirs["Bs"].chunk(len(old), dim=1)
    changed = {"Bs": torch.cat([blocks[old.index(letter)] for letter in letters], dim=1)}
    for key, tensor in theirs.items():
        if key == "gen.queries":
            queries = tensor.chunk(len(old), dim=1)
            changed[key] = torch.cat([queries[old.index(letter)] for letter in letters], dim=1)
        elif fields["weights_sep"] and key.startswith("gen."):
            _, number, *rest = key.split(".")
            changed[".".join(("gen", str(letters.index(old[int(number)])), *rest))] = tensor
        elif key != "Bs":
            changed[key] = tensor
    return changed


@pytest.mark.parametrize(("name", "letters"), [("separate_qkvom", "movkq"), ("joint_qkv", "vqk")])
def test_the_order_of_letters_does_not_matter(name: str, letters: str) -> None:
    theirs, fields = _theirs(name)
    expected = _ours(theirs, fields)
    ours = _ours(_reordered(theirs, fields, letters), fields | {"vlora_type": letters})
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(ours[key], tensor), key
    # Read in the wrong order, it is another model.
    wrong = _ours(_reordered(theirs, fields, letters), fields)
    assert not all(torch.equal(wrong[key], tensor) for key, tensor in expected.items())


def test_every_number_of_theirs_is_used_once() -> None:
    theirs, fields = _theirs("separate_qkvom")
    ours = _ours(theirs, fields)
    everything = torch.cat([tensor.flatten() for tensor in theirs.values()]).sort().values
    assert torch.equal(torch.cat([tensor.flatten() for tensor in ours.values()]).sort().values, everything)
    assert all(tensor.is_contiguous() for tensor in ours.values())


def test_a_joint_head_becomes_one_for_each_target() -> None:
    theirs, fields = _theirs("joint_qkv")
    ours = _ours(theirs, fields)
    for target in map(TARGET_OF.__getitem__, fields["vlora_type"]):
        assert torch.equal(ours[f"heads.{target}_{fields['hidden_size']}.weight"], theirs["gen.weights_head.weight"])
        assert torch.equal(ours[f"head_norms.{target}.bias"], theirs["gen.norm.bias"])
    assert len({ours[f"head_norms.{target}.bias"].data_ptr() for target in "qkv"}) == 3


def test_good_settings() -> None:
    config = generator_config(GOOD | {"vlora_type": "mq", "weights_sep": False}, "config.json")
    assert (tuple(config.targets), config.queries, config.heads) == (("q", "mlp"), "joint", 16)
    assert config.worn_layers(6) == (1, 3, 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vlora_dim", 0),
        ("vlora_dim", "512"),
        ("vlora_depth", None),
        ("vlora_rank", 1.5),
        ("skip_layers", True),
        ("vlora_alpha", -1),
        ("vlora_alpha", "8"),
        ("weights_sep", "yes"),
        ("vlora_type", "qx"),
        ("vlora_type", "qq"),
        ("vlora_type", ""),
        ("vlora_type", ["q"]),
    ],
)
def test_wrong_settings(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        generator_config(GOOD | {name: value}, "somewhere/config.json")
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: {value!r} is n")
    assert caught.value.source == "somewhere/config.json"


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        generator_config({}, "config.json")
    assert len(caught.value.problems) == len(GOOD)
