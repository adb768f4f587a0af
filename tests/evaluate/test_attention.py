"""The attention computed once more is the attention that was used; patches lie where the encoder reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, Dinov2WithRegistersConfig, ResNetConfig, SwinConfig

from tests.helpers import images, picture, tiny_model, tiny_vision
from vlora.errors import InputError
from vlora.evaluate.attention import Grid, cross_attention, find_grid, picture_seen
from vlora.model import VLoRAForConditionalGeneration
from vlora.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, image_processor
from vlora.model.vision import encode

TARGETS, LAYERS, DEPTH, HEADS, PATCHES = ("q", "v", "down"), (0, 1, 3), 2, 4, 16


def looking(queries: str) -> VLoRAForConditionalGeneration:
    return tiny_model(targets=TARGETS, layers=LAYERS, depth=DEPTH, heads=HEADS, queries=queries)


def seen(model: VLoRAForConditionalGeneration) -> Tensor:
    return model.get_image_features(images(2)).last_hidden_state.detach()


@pytest.mark.parametrize("queries", ["separate", "joint"])
@torch.no_grad()
def test_times_values_it_is_what_the_module_gave(queries: str) -> None:
    model = looking(queries)
    generator, features = model.model.generator, seen(model)
    calls: list[tuple[Any, Tensor, Tensor]] = []  # (module, memory, output), trunk by trunk, block by block
    modules: list[nn.Module] = [block.cross_attention for trunk in generator.trunks.values() for block in trunk.blocks]
    for module in modules:
        module.register_forward_hook(lambda module, args, output: calls.append((module, args[1], output)))
    looked = cross_attention(generator, features)
    assert looked.shape == (2, len(TARGETS), len(LAYERS), DEPTH, HEADS, PATCHES)
    torch.testing.assert_close(looked.sum(-1), torch.ones(looked.shape[:-1]))

    trunks = looked.flatten(1, 2).split([9] if queries == "joint" else [3, 3, 3], dim=1)
    assert len(calls) == len(trunks) * DEPTH
    for number, (module, memory, output) in enumerate(calls):
        probabilities = trunks[number // DEPTH][:, :, number % DEPTH].transpose(1, 2)  # [image, head, query, patch]
        values = module.v_proj(memory).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        again = module.out_proj((probabilities @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(again, output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("queries", ["separate", "joint"])
@torch.no_grad()
def test_targets_and_layers_are_those_of_the_visual_parameters(queries: str) -> None:
    generator = (model := looking(queries)).model.generator
    features = seen(model)
    for trunk in generator.trunks.values():
        for block in trunk.blocks:  # no query hears of another one
            block.self_attention.out_proj.weight.zero_()
            block.self_attention.out_proj.bias.zero_()
    codes, looked = generator.perceive(features).values, cross_attention(generator, features)
    for trunk in generator.trunks.values():
        for query in trunk.queries:
            query.add_(1.0)
            changed = (generator.perceive(features).values != codes).any(-1)
            turned = (cross_attention(generator, features) != looked).flatten(3).any(-1)
            assert changed[0].sum() == 1
            assert torch.equal(changed, turned)
            query.sub_(1.0)
            looked, codes = cross_attention(generator, features), generator.perceive(features).values


def test_mean_over_heads() -> None:
    model = looking("separate")
    features = seen(model)
    every = cross_attention(model.model.generator, features)
    mean = cross_attention(model.model.generator, features, average_heads=True)
    torch.testing.assert_close(mean, every.mean(4))
    assert every.std(4).max() > 0.01


def test_no_hook_stays() -> None:
    generator = (model := looking("joint")).model.generator
    cross_attention(generator, seen(model))
    with pytest.raises(InputError, match="built for features"):
        cross_attention(generator, torch.zeros(1, 3, 32))
    assert not any(module._forward_hooks for module in generator.modules())


@pytest.mark.parametrize("kind", ["clip", "efficientnet"])
@torch.no_grad()
def test_a_patch_lies_where_the_encoder_reads_it(kind: str) -> None:
    if kind == "clip":
        encoder: Any = tiny_vision()
        pixels = images(1)
    else:  # maps of three sizes, on one grid
        encoder = EfficientNetLiteModel(EfficientNetLiteConfig(image_size=128, stages=(1, 2, 3))).eval()
        pixels = torch.randn(1, 3, 128, 128)
    before = encode(encoder, pixels, feature_layer=0, select="default")
    grid = find_grid(encoder.config, (pixels.shape[2], pixels.shape[3]), before.shape[1])
    assert grid is not None
    for row, column in [(0, 0), (1, 3), (grid.rows - 1, 2)]:
        changed = pixels.clone()
        rows = slice(row * grid.height, (row + 1) * grid.height)
        changed[..., rows, column * grid.width : (column + 1) * grid.width] += 5
        after = encode(encoder, changed, feature_layer=0, select="default")
        difference = grid.place((after - before).norm(dim=-1))[0]
        assert divmod(int(difference.argmax()), grid.columns) == (row, column)
        if kind == "clip":  # before any mixing
            assert difference.count_nonzero() == 1


CLIP = CLIPVisionConfig(image_size=32, patch_size=8)


@pytest.mark.parametrize(
    ("config", "size", "features", "expected"),
    [
        (CLIP, (32, 32), 16, Grid(0, 4, 4, 8, 8)),
        (CLIP, (32, 32), 17, Grid(1, 4, 4, 8, 8)),  # with the class token
        (CLIP, (39, 20), 8, Grid(0, 4, 2, 8, 8)),  # what is left at the edges is not read
        (Dinov2WithRegistersConfig(patch_size=14, num_register_tokens=4), (28, 28), 9, Grid(5, 2, 2, 14, 14)),
        (EfficientNetLiteConfig(), (128, 128), 64, Grid(0, 8, 8, 16, 16)),
        (EfficientNetLiteConfig(stages=(1, 3, 7), stride=32), (130, 128), 20, Grid(0, 5, 4, 32, 32)),
        (CLIP, (32, 32), 116, None),  # 100 tokens that are no patches, before or after them
        (CLIP, (32, 32), 15, None),
        (SwinConfig(patch_size=4), (224, 224), 49, None),  # patches merged on the way
        (ResNetConfig(), (224, 224), 49, None),
    ],
)
def test_grids(config: Any, size: tuple[int, int], features: int, expected: Grid | None) -> None:
    assert find_grid(config, size, features) == expected
    if expected:
        assert expected.features == features


def test_tokens_before_the_patches_are_not_on_the_picture() -> None:
    placed = Grid(first=1, rows=2, columns=3, height=8, width=8).place(torch.arange(7))
    assert placed.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("kind", ["crop", "pad"])
def test_the_picture_is_the_one_that_was_read(kind: str, rescale: bool) -> None:
    if kind == "crop":
        processor: Any = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    else:
        processor = image_processor(32)
    processor.do_rescale = rescale
    source = picture(size=(40, 61))
    pixels = processor([source], return_tensors="pt")["pixel_values"][0]
    plain = processor([source], return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0]
    seen = picture_seen(pixels, processor)
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, np.transpose(plain, (1, 2, 0)))


def test_pixels_that_were_not_normalised() -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.do_normalize = False
    source = picture(size=(32, 32))
    pixels = processor([source], return_tensors="pt")["pixel_values"][0]
    np.testing.assert_array_equal(picture_seen(pixels, processor), np.asarray(source))
