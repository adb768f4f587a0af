"""EfficientNet-Lite against the published weights, its own formulas and real photographs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModel

from vlora.errors import CheckpointError
from vlora.model.efficientnet_lite import (
    IMAGE_MEAN,
    IMAGE_STD,
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    from_tensorflow_names,
    register,
)
from vlora.nano.parts import VISION, vision_weights
from vlora.nano.vision import load_encoder


@pytest.fixture(scope="module")
def published() -> EfficientNetLiteModel:
    """Lite0 with its ImageNet weights, features of the default stages."""
    return _published()


def _published(**fields: object) -> EfficientNetLiteModel:
    return load_encoder(EfficientNetLiteConfig(**fields)).requires_grad_(False)


def _photograph(package: str, name: str, size: int) -> Tensor:
    """A centre crop of a photograph that a package ships; the package is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs {package} for its photographs")
    image = Image.open(Path(spec.origin).parent / name).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return ((pixels - torch.tensor(IMAGE_MEAN)[:, None, None]) / torch.tensor(IMAGE_STD)[:, None, None])[None]


# -- the published weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VISION)
def test_every_published_tensor_has_a_place(variant: str) -> None:
    source = vision_weights(variant)
    counters = [name for name in source if name.endswith("num_batches_tracked")]
    renamed = from_tensorflow_names(source)
    assert len(renamed) == len(source) - len(counters)
    assert renamed.keys() == _published(variant=variant).state_dict().keys()


def test_a_foreign_tensor_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight"):
        from_tensorflow_names({"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="_se_reduce"):
        from_tensorflow_names({"_blocks.0._se_reduce.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("package", "name", "classes"),
    [
        ("sklearn", "datasets/images/china.jpg", {698}),  # palace
        ("sklearn", "datasets/images/flower.jpg", {985}),  # daisy, the nearest ImageNet has to a dahlia
        ("skimage", "data/chelsea.png", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("skimage", "data/coffee.png", {967}),  # espresso
    ],
)
def test_names_what_is_in_a_photograph(
    published: EfficientNetLiteModel, package: str, name: str, classes: set[int]
) -> None:
    logits = published.classify(_photograph(package, name, 224))
    assert logits.shape == (1, 1000)
    assert int(logits.argmax()) in classes


@pytest.mark.parametrize("variant", ["lite1", "lite2"])
def test_the_larger_ones_name_it_too(variant: str) -> None:
    logits = _published(variant=variant).classify(_photograph("sklearn", "datasets/images/china.jpg", 224))
    assert int(logits.argmax()) == 698  # palace


def test_normalisation_is_the_published_one() -> None:
    x = torch.arange(256.0)
    ours = (x / 255 - IMAGE_MEAN[0]) / IMAGE_STD[0]
    torch.testing.assert_close(ours, (x - 127) / 128)


def test_strided_convolutions_pad_to_the_right_and_bottom(published: EfficientNetLiteModel) -> None:
    x = torch.randn(1, 3, 32, 48)
    stem = published.stem
    by_hand = F.conv2d(F.pad(x, (0, 1, 0, 1)), stem.conv.weight, stride=2)
    by_hand = (by_hand - stem.norm.running_mean[:, None, None]) / (stem.norm.running_var + 1e-3).sqrt()[:, None, None]
    by_hand = by_hand * stem.norm.weight[:, None, None] + stem.norm.bias[:, None, None]
    torch.testing.assert_close(stem(x), by_hand.clamp(0, 6), atol=1e-5, rtol=1e-4)


# -- the features -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "stride", "size", "shape"),
    [
        ((5, 7), 16, 128, (64, 432)),
        ((5, 7), 32, 128, (16, 432)),
        ((7, 2, 4), 16, 128, (64, 424)),
        ((1,), 32, 64, (4, 16)),
        ((6,), 16, 100, (49, 192)),  # no multiple of the stride: the grid is rounded up
        ((3, 5, 7), 32, 100, (16, 472)),
        ((5, 7), 16, 17, (4, 432)),
    ],
)
def test_shape_of_the_features(stages: tuple[int, ...], stride: int, size: int, shape: tuple[int, int]) -> None:
    config = EfficientNetLiteConfig(stages=stages, stride=stride, image_size=size)
    features = EfficientNetLiteModel(config)(torch.randn(2, 3, size, size)).last_hidden_state
    assert features.shape == (2, *shape)
    assert (config.patches, config.hidden_size) == shape
    assert torch.isfinite(features).all()


def test_maps_of_other_sizes_are_averaged_or_repeated() -> None:
    x = torch.randn(1, 3, 128, 128)
    whole = _published(stages=(3, 7), stride=16)
    features = whole(x).last_hidden_state.view(8, 8, 360)
    maps = whole._stage_maps(x, upto=7)
    row, column = 2, 5
    fine = maps[2][0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(1, 2))
    torch.testing.assert_close(features[row, column, :40], fine)
    torch.testing.assert_close(features[row, column, 40:], maps[6][0, :, row // 2, column // 2])


def test_an_oblong_image_has_an_oblong_grid(published: EfficientNetLiteModel) -> None:
    x = torch.randn(1, 3, 64, 160)
    features = published(x).last_hidden_state
    assert features.shape == (1, 4 * 10, 432)
    stage_5 = published._stage_maps(x, upto=5)[4]
    torch.testing.assert_close(features[0, 1 * 10 + 7, :112], stage_5[0, :, 1, 7])


@pytest.mark.parametrize("stride", [16, 32])
@pytest.mark.parametrize(("down", "right"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_bright_square_moves_the_patch_it_lies_on(stride: int, down: int, right: int) -> None:
    model = _published(stages=(5,), stride=stride)
    plain = torch.zeros(1, 3, 128, 128)
    marked = plain.clone()
    top, left = down * 96, right * 96
    marked[..., top : top + 32, left : left + 32] = 1
    moved = (model(marked).last_hidden_state - model(plain).last_hidden_state).norm(dim=-1)[0]
    row, column = divmod(int(moved.argmax()), 128 // stride)
    assert row * stride in range(top, top + 32)
    assert column * stride in range(left, left + 32)


def test_training_mode_changes_nothing(published: EfficientNetLiteModel) -> None:
    x = torch.randn(3, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in published.state_dict().items()}
    expected = published.eval()(x).last_hidden_state
    try:
        actual = published.train()(x).last_hidden_state
    finally:
        published.eval()
    assert torch.equal(actual, expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in published.state_dict().items())


def test_an_image_is_seen_alike_in_any_company(published: EfficientNetLiteModel) -> None:
    x = torch.randn(3, 3, 64, 64)
    together = published(x).last_hidden_state
    for number in range(3):
        alone = published(x[number : number + 1]).last_hidden_state
        torch.testing.assert_close(alone[0], together[number], atol=1e-4, rtol=1e-4)


def test_every_parameter_the_features_use_gets_a_gradient() -> None:
    model = EfficientNetLiteModel(EfficientNetLiteConfig(stages=(5, 7)))
    model(torch.randn(2, 3, 64, 64)).last_hidden_state.square().mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name in model.state_dict() if name.startswith("classifier.")} | {
        "head.conv.weight",
        "head.norm.weight",
        "head.norm.bias",
    }


# -- the configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "channels", "blocks"),
    [
        ("lite0", (16, 24, 40, 80, 112, 192, 320), 16),
        ("lite1", (16, 24, 40, 80, 112, 192, 320), 21),
        ("lite2", (16, 24, 48, 88, 120, 208, 352), 21),
    ],
)
def test_sizes_of_the_variants(variant: str, channels: tuple[int, ...], blocks: int) -> None:
    config = EfficientNetLiteConfig(variant=variant)
    model = EfficientNetLiteModel(config)
    assert config.stage_channels == channels
    assert config.hidden_size == channels[4] + channels[6]
    assert len(model.blocks) == blocks
    assert model.stem.conv.out_channels == 32
    assert model.head.conv.out_channels == 1280


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "lite9"}, "lite9.*lite0, lite1, lite2"),
        ({"stages": ()}, "at least one of 1 to 7"),
        ({"stages": (0, 5)}, "at least one of 1 to 7"),
        ({"stages": (5, 5)}, "each stage once"),
        ({"stride": 8}, "16 and 32"),
        ({"image_size": 0}, "at least 1"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message):
        EfficientNetLiteConfig(**fields)


def test_the_auto_classes_save_and_load_it(tmp_path: Path) -> None:
    register()
    register()  # A second import of the registration must not fail.
    model = EfficientNetLiteModel(EfficientNetLiteConfig(stages=(3, 6), stride=32, image_size=96)).eval()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is EfficientNetLiteConfig
    assert (config.stages, config.stride, config.image_size) == ((3, 6), 32, 96)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(loaded(pixel_values=x)[0], model(pixel_values=x, return_dict=False)[0])


def test_pixels_follow_the_dtype_of_the_weights(published: EfficientNetLiteModel) -> None:
    x = torch.randn(1, 3, 64, 64)
    half = _published().to(torch.bfloat16)(x).last_hidden_state
    assert half.dtype == torch.bfloat16
    whole = published(x).last_hidden_state
    assert F.cosine_similarity(half.float(), whole, dim=-1).min() > 0.98
