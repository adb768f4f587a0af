"""`benchmarks/encoders.py`: what it draws and looks at, and that its probe tells what features tell."""

from __future__ import annotations

import encoders
import pytest
import torch


def test_a_probe_names_what_features_tell_apart_and_nothing_else() -> None:
    torch.manual_seed(0)
    names = [f"thing {number % 4}" for number in range(400)]
    features = torch.eye(4)[torch.arange(400) % 4] + 0.1 * torch.randn(400, 4)
    probe = encoders.Linear(features, names, seed=0)
    assert probe.right(features, names) == 400
    assert probe.right(features, ["never learned"] * 400) == 0
    blind = encoders.Linear(torch.randn(400, 4), names, seed=0)
    assert blind.right(torch.randn(400, 4), names) < 180


@pytest.mark.parametrize("name", ["lite0:64", "lite2:96"])
def test_pictures_have_features_and_the_names_of_their_task(name: str) -> None:
    encoder = encoders.Encoder(name)
    part = encoders.Part("scenes", "scenes/colour", 40)
    (features,), names = encoders.seen(part, "train", (encoder,))
    assert features.shape == (len(names), 2 * encoder.model.config.hidden_size)
    assert 0 < len(names) <= 40
    (again,), both = encoders.joined([((features,), names)] * 2)  # type: ignore[list-item]
    assert len(again) == len(both) == 2 * len(names)


def test_a_probe_on_scenes_runs_to_its_rows() -> None:
    part = encoders.Part("scenes", "scenes/shape", 60)
    encoder = encoders.Encoder("lite0:64")
    (row,) = encoders.rows("scenes", encoders.Probe((part,), (part,)), (encoder,), share=0.5, seeds=1)
    assert (row.task, row.encoder) == ("scenes/shape", "lite0:64")
    assert 0 < row.n <= 30
    assert row.interval[0] <= row.right <= row.interval[1]
