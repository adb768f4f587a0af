"""`vlora train` for a generator that changes its encoder: it learns to see with another one what it saw with its own.

    python scripts/change_encoder.py TRAINED [TRAINED ...] CONFIG [options of vlora train]
    python scripts/change_encoder.py nano configs/nano.yaml --run-dir runs/new --set model.vision_options.variant=lite2

    image ─┬─ its own encoder ── the trained generator ─── wanted ─┐
           │                                                       ├── loss: how far apart their ΔW are
           └─ the encoder of the config ── a copy of it ── made ───┘

No text is read: a look takes two encoders and two generators, some tenth of what its questions would take. What makes
weights of visual parameters stays as it was trained (heads, B, scales); what comes before them learns. It begins with
all that fits: positions are interpolated, and where features have another width the projection is fitted, so that it
comes as near as a linear map can to the memory that the trained generator has of the same images.

Of several trained models it begins as the first and learns the mean of what all of them make of an image, each through
its own encoder. Of nano at 128 and at 160 pixels that mean had a lower loss than the latter (docs/log.md).

Training by questions goes on from what comes out, with `model.checkpoint`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlora.cli import app
from vlora.errors import InputError
from vlora.evaluate.deltas import base_norm
from vlora.loading import load
from vlora.model import PerceptualWeights
from vlora.model.generator import PerceptualWeightsGenerator
from vlora.model.weights import Layout
from vlora.train import run
from vlora.train.config import TrainConfig
from vlora.train.learner import Learner
from vlora.train.loader import looks_of, steps_of
from vlora.train.looks import Look, Task

LEARN = ("feature_norm.", "project.", "positions", "trunks.")
"""What of a generator comes before its heads."""
FEATURES = ("feature_norm.", "project.")
"""What of it reads features of one encoder."""
FITTED, BATCH = 640, 32
"""Images that a projection is fitted to, and how many are seen at a time."""
RIDGE = 1e-4
"""What is added to the variance of each feature there, of the mean of them."""


class Distance:
    """How far apart two sets of weights are where they are worn: Σ ‖ΔW - ΔW'‖² / ‖W‖², the mean over images.

    That is the mean square of what an input of independent numbers would be told apart by, over what it becomes.

    Args:
        language_model: whose linear layers wear them.
        layout: where they are worn.
    """

    def __init__(self, language_model: nn.Module, layout: Layout) -> None:
        # A bypass has no weight to be measured by.
        self.size = {place: base_norm(language_model, *place) or 1.0 for place in layout.place_of}

    def __call__(self, made: PerceptualWeights, wanted: PerceptualWeights) -> Tensor:
        """The loss: a number."""
        return sum((self._at(place, made, wanted) for place in self.size), torch.zeros(()))

    def _at(self, place: tuple[int, str], made: PerceptualWeights, wanted: PerceptualWeights) -> Tensor:
        (a, b), (c, d) = made.factors(*place), wanted.factors(*place)
        # [A C] [B; -D] is the difference, and its square norm takes matrices of the rank alone.
        left, right = torch.cat([a, c], dim=-1), torch.cat([b, -d], dim=-2)
        squares = ((left.mT @ left) * (right @ right.mT)).sum((-2, -1))
        return squares.mean() * (made.layout.scale / self.size[place]) ** 2


class Pixels:
    """Pixels that one image processor made, as another would have: of its size, and with its mean and deviation."""

    def __init__(self, given: Any, wanted: Any, size: int) -> None:
        (mean, deviation), (other_mean, other_deviation) = (
            [torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std)]
            for processor in (given, wanted)
        )
        self.factor, self.offset = deviation / other_deviation, (mean - other_mean) / other_deviation
        self.size = size

    def __call__(self, pixels: Tensor) -> Tensor:
        """`[image, 3, height, width]` -> `[image, 3, size, size]`."""
        pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bicubic", antialias=True)
        return pixels * self.factor.to(pixels) + self.offset.to(pixels)


class Teacher:
    """What a trained model makes of pixels that another one was given."""

    def __init__(self, trained: Any, given: Any) -> None:
        self.model = trained.model.model.requires_grad_(False)
        self.pixels = Pixels(given, trained.processor.image_processor, self.model.config.vision_config.image_size)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> PerceptualWeights:
        """`[image, 3, height, width]`, the learner's -> weights."""
        weights: PerceptualWeights = self.model.expand(self.model.perceive(self.pixels(pixels)))
        return weights


class Change:
    """From the eyes of trained models to those of a learner.

    Args:
        learner: a new model with another encoder.
        trained: loaded, each a `vlora.VLoRA`. The first is what the new one begins as.

    Raises:
        InputError: their generators differ in more than the features.
    """

    def __init__(self, learner: Learner, *trained: Any) -> None:
        self.learner, self.new = learner, learner.model.model
        self.teachers = [Teacher(eyes, learner.processor.image_processor) for eyes in trained]
        self.old, self.pixels = self.teachers[0].model, self.teachers[0].pixels
        self.new.train()  # and looks at an image once
        self.distance = Distance(learner.language_model, self.old.generator.layout)

    def begin(self) -> None:
        """Take over all that fits, and let learn what comes before the heads."""
        have, want = self.old.generator.state_dict(), self.new.generator.state_dict()
        for teacher in self.teachers:
            self._check(teacher.model.generator, want)
        taken = {name: value for name, value in have.items() if self._kind_stays() or not name.startswith(FEATURES)}
        taken["positions"] = on_grid(have["positions"][None], self.new.generator.patches)[0]
        self.new.generator.load_state_dict({**want, **taken})
        if not self._kind_stays():
            self.fit()
        for name, parameter in self.new.generator.named_parameters():
            parameter.requires_grad_(name.startswith(LEARN))

    def _check(self, trained: PerceptualWeightsGenerator, want: dict[str, Tensor]) -> None:
        shapes = [
            {name: value.shape for name, value in state.items() if not name.startswith((*FEATURES, "positions"))}
            for state in (trained.state_dict(), want)
        ]
        if trained.layout != self.new.generator.layout or shapes[0] != shapes[1]:
            raise InputError(
                "Only the encoder changes: model.language_model and model.generator of the config must be those that "
                "the trained model has, and they differ."
            )

    def _kind_stays(self) -> bool:
        """Whether it is the same encoder at another size, whose features mean what they did."""
        old, new = (model.config.vision_config.to_dict() | {"image_size": 0} for model in (self.old, self.new))
        return old == new

    @torch.no_grad()
    def fit(self) -> None:
        """Set the projection to the linear map that comes nearest to the trained generator's memory."""
        old, new = self.old.generator, self.new.generator
        width = new.vision_dim + 1  # and a one, for the bias
        squares, products = torch.zeros(width, width).double(), torch.zeros(width, new.config.dim).double()
        for pixels in track(list(self._images()), description="fitting the projection", console=Console(stderr=True)):
            memory = old.project(old.feature_norm(self.old.get_image_features(self.pixels(pixels)).last_hidden_state))
            features = new.feature_norm(self.new.get_image_features(pixels).last_hidden_state)
            x = F.pad(features, (0, 1), value=1.0).flatten(0, 1).double()
            squares += x.T @ x
            products += x.T @ on_grid(memory, new.patches).flatten(0, 1).double()
        squares += RIDGE * squares.diagonal().mean() * torch.eye(width)
        solution = torch.linalg.solve(squares, products).to(new.dtype)
        new.project.weight.copy_(solution[:-1].T)
        new.project.bias.copy_(solution[-1])

    def _images(self) -> Iterator[Tensor]:
        """The first images that the run will see, `BATCH` at a time."""
        config = self.learner.config
        looks = looks_of(config, self.learner)
        steps = steps_of(config, looks)
        seen = (looks[Task(pick, 1.0)] for number in range(FITTED) for pick in steps[number])
        images = islice((image for look in seen if isinstance(look, Look) for image in look.pixels), FITTED)
        while batch := list(islice(images, BATCH)):
            yield torch.stack(batch)

    def loss(self, pixel_values: Tensor | None = None, **_: Any) -> CausalLMOutputWithPast:
        """What the trainer asks of a model; of its batch only the images are looked at."""
        if pixel_values is None:  # nothing to see: no loss, and a gradient of zero
            learning = [p for p in self.new.generator.parameters() if p.requires_grad]
            return CausalLMOutputWithPast(loss=0 * torch.stack([p.flatten()[0] for p in learning]).sum())
        made = self.new.expand(self.new.perceive(pixel_values))
        # What is nearest to all of them is their mean, so there is no need to compute it.
        apart = [self.distance(made, teacher(pixel_values)) for teacher in self.teachers]
        return CausalLMOutputWithPast(loss=torch.stack(apart).mean())


def on_grid(values: Tensor, patches: int) -> Tensor:
    """`[batch, patch, dim]` of a square grid -> `[batch, patches, dim]` of another."""
    old, new = math.isqrt(values.shape[1]), math.isqrt(patches)
    if old**2 != values.shape[1] or new**2 != patches:
        raise InputError(
            f"The patches of both encoders must lie in a square; there are {values.shape[1]} and {patches}."
        )
    grid = values.mT.unflatten(-1, (old, old))
    return F.interpolate(grid, size=(new, new), mode="bilinear").flatten(-2).mT


def main(arguments: list[str]) -> None:
    """`vlora train` with another loss."""
    names = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    if len(names) < 2:
        raise SystemExit(f"Usage: {Path(__file__).name} TRAINED [TRAINED ...] CONFIG [options of vlora train]")
    trained, plain = names[:-1], run.build

    def build(config: TrainConfig, device: torch.device) -> Learner:
        learner = plain(config, device)
        change = Change(learner, *(load(name, device=device, views=1) for name in trained))
        change.begin()
        learner.model.forward = change.loss
        return learner

    run.build = build
    app(["train", *arguments[len(trained) :]])


if __name__ == "__main__":
    main(sys.argv[1:])
