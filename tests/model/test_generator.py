"""The generator's size, and what its options do to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import KINDS, images, shared_model
from vlora.model import GeneratorConfig
from vlora.model.generator import PerceptualWeightsGenerator
from vlora.model.weights import Place


def _parameters_at_7b(**options: Any) -> int:
    """Learned numbers of a generator for a language model of width 4096 with 32 blocks, and CLIP-L/14-336."""
    config = GeneratorConfig(**options)
    places = tuple(Place(layer, target, 4096, 4096) for layer in config.worn_layers(32) for target in config.targets)
    with torch.device("meta"):
        generator = PerceptualWeightsGenerator(config, vision_dim=1024, patches=576, places=places)
    return sum(parameter.numel() for parameter in generator.parameters())


def test_the_authors_generator_has_their_number_of_parameters() -> None:
    assert _parameters_at_7b() == 851_891_712
    assert _parameters_at_7b(dim=1024) == 2_027_531_264


def test_a_dictionary_removes_most_of_the_heads() -> None:
    linear, heads = _parameters_at_7b(), 5 * (512 + 1) * 4096 * 64
    for size in (64, 128, 256):
        dictionary = 5 * (512 + 1) * size * 64 + 40 * 4096 * size
        assert _parameters_at_7b(head="dictionary", dictionary_size=size) == linear - heads + dictionary
    assert _parameters_at_7b(head="dictionary", dictionary_size=256) < 0.31 * linear
    assert _parameters_at_7b(head="dictionary", dictionary_size=128, queries="joint") < 0.11 * linear


def _fresh(**options: Any) -> PerceptualWeightsGenerator:
    """A fresh generator of nano's width."""
    torch.manual_seed(0)
    config = GeneratorConfig(targets=("v", "o"), layers=(0, 1), dim=256, depth=2, heads=8, rank=4, **options)
    places = tuple(Place(layer, target, 96, 96) for layer in (0, 1) for target in ("v", "o"))
    return PerceptualWeightsGenerator(config, vision_dim=472, patches=16, places=places)


@pytest.mark.parametrize("queries", ["joint", "separate"])
@torch.no_grad()
def test_what_a_scaled_trunk_hands_on_depends_on_the_image(queries: str) -> None:
    features = torch.randn(32, 1, 472, generator=torch.Generator().manual_seed(1)).expand(-1, 16, -1)
    shares: dict[str, float] = {}
    for kind in ("fixed", "scaled"):
        generator = _fresh(queries=queries, norms=True, trunk_init=kind)
        codes = torch.layer_norm(generator.perceive(features).values, (256,))
        shares[kind] = float(codes.var(0).mean() / codes.square().mean())
    assert shares["fixed"] < 0.01
    assert shares["scaled"] > 0.1


@torch.no_grad()
def test_a_scaled_trunk_leaves_the_rest_as_it_was() -> None:
    generator = _fresh(trunk_init="scaled")
    for name, parameter in generator.named_parameters():
        if parameter.ndim == 2 and name.startswith(("project", "trunks")) and name.endswith("weight"):
            assert float(parameter.std()) == pytest.approx(parameter.shape[1] ** -0.5, rel=0.05), name
        elif name.startswith("heads.") and parameter.ndim == 2:
            assert float(parameter.std()) == pytest.approx(0.02, rel=0.15), name
        elif name.startswith("b."):
            assert not parameter.any()


@torch.no_grad()
def test_a_learned_a_is_there_from_the_start_and_writes_nothing() -> None:
    generator = _fresh(factors="b")
    for place in generator.layout.places:
        a = generator.a[f"layer{place.layer}_{place.target}"]
        assert float(a.std()) == pytest.approx(place.in_dim**-0.5, rel=0.2)
    assert not generator(torch.randn(2, generator.patches, generator.vision_dim)).values.any()


@pytest.mark.parametrize("options", KINDS, ids=str)
@torch.no_grad()
def test_factors_lie_where_the_layout_says(options: dict[str, Any]) -> None:
    model = shared_model(**options)
    generator = model.model.generator
    visual = model.perceive(images(2))
    weights = generator.expand(visual)
    assert len(weights) == 2
    assert weights.layout is generator.layout
    made = options.get("factors", "a")
    for number, factor in enumerate("ab"):
        learned = {"a": getattr(generator, "a", {}), "b": generator.b}[factor]
        expected = generator._factors(factor, visual.values) if factor in made else {}
        for layer, target in generator.layout.place_of:
            own = weights.factors(layer, target)[number]
            assert torch.equal(own, expected[layer, target] if expected else learned[f"layer{layer}_{target}"])
            assert own.ndim == (3 if factor in made else 2)
            assert torch.equal(weights.pair(layer, target)[number], own[0] if expected else own)
