"""What an encoder's features can tell of nano's pictures, before any generator and language model: a linear probe.

    .venv/bin/python benchmarks/encoders.py [--encoders lite0:128 lite2:160] [--share 1] [--seeds 2]

Pictures are drawn as training draws them, at 128 pixels, and enlarged or reduced to the encoder's (variant:pixels).
The features of stages 3, 5 and 7, their mean and maximum over the patches, go through dropout and one linear layer to
the name. It is tested on the test's pictures from number 50 000 on, which the published suite does not ask about. All
encoders see the same pictures. It wants `vlora data fetch nano`, and some minutes for each encoder.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from vlora.data.sets.nano.base import Split, open_set
from vlora.evaluate.scoring import wilson
from vlora.model.efficientnet_lite import EfficientNetLiteConfig, image_processor
from vlora.nano.vision import load_encoder

FIRST = 50_000
"""Number of the first picture to be tested."""
BATCH = 32
ENCODERS = ["lite0:128", "lite0:160", "lite2:160"]


@dataclass(frozen=True)
class Part:
    """Pictures of one set, and the task whose answer is their name.

    Args:
        name: of the set.
        task: of the turn with the name; pictures without one are passed over.
        count: pictures drawn.
    """

    name: str
    task: str
    count: int


@dataclass(frozen=True)
class Probe:
    """What is learned from, and what is asked then."""

    learn: tuple[Part, ...]
    ask: tuple[Part, ...]


EMOJI = Part("emoji", "emoji/name", 12_000)
STAMPS = Part("stamps", "stamps/noun", 4_000)
ASKED_STAMPS = Part("stamps", "stamps/noun", 1_600), Part("stamps", "stamps/held-out-noun", 1_600)
PROBES = {
    "emoji": Probe((EMOJI,), (Part("emoji", "emoji/name", 2_400), Part("emoji", "emoji/other-artist-name", 2_400))),
    "stamps": Probe((STAMPS,), ASKED_STAMPS),
    "stamps and nouns": Probe((STAMPS, Part("nouns", "nouns/noun", 4_000)), ASKED_STAMPS),
    "clip art": Probe((Part("clipart", "clipart/topic", 3_000),), (Part("clipart", "clipart/topic", 1_200),)),
}


class Encoder:
    """An EfficientNet-Lite at a size, as `variant:pixels` names it."""

    def __init__(self, name: str) -> None:
        variant, pixels = name.split(":")
        self.name = name
        config = EfficientNetLiteConfig(variant=variant, image_size=int(pixels), stages=(3, 5, 7))
        self.model, self.processor = load_encoder(config), image_processor(config.image_size)

    @torch.no_grad()
    def features(self, images: Sequence[object]) -> Tensor:
        """Images -> `[image, 2 · channels]`: mean and maximum over the patches."""
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        seen = self.model(pixels).last_hidden_state
        return torch.cat([seen.mean(1), seen.amax(1)], dim=1)


Seen = tuple[list[Tensor], list[str]]
"""Features `[picture, width]` by each encoder, and the names of the pictures."""


@cache
def seen(part: Part, split: Split, encoders: tuple[Encoder, ...]) -> Seen:
    """Draw the pictures of a part, and look at them with every encoder; once, though several probes may ask for it."""
    pictures = open_set(part.name, split)
    first = FIRST if split == "test" else 0
    features: list[list[Tensor]] = [[] for _ in encoders]
    names: list[str] = []
    batches = torch.arange(first, first + part.count).split(BATCH)
    for numbers in track(batches, description=f"{part.task} ({split})", console=Console(stderr=True)):
        images = []
        for number in numbers.tolist():
            picture = pictures.picture(number)
            name = next((turn.answer for turn in picture.turns if turn.task == part.task), None)
            if name is not None:
                images.append(picture.image)
                names.append(name)
        if images:
            for looks, encoder in zip(features, encoders, strict=True):
                looks.append(encoder.features(images))
    return [torch.cat(looks) for looks in features], names


def joined(parts: Iterable[Seen]) -> Seen:
    """Several parts as one."""
    parts = list(parts)
    by_encoder = zip(*(features for features, _ in parts), strict=True)
    return [torch.cat(looks) for looks in by_encoder], [name for _, names in parts for name in names]


class Linear:
    """A linear classifier of features, by AdamW at 1e-3, whose rate falls to zero over the second half."""

    def __init__(self, features: Tensor, names: Sequence[str], *, seed: int, steps: int = 2_000) -> None:
        torch.manual_seed(seed)
        self.names = sorted(set(names))
        number = {name: index for index, name in enumerate(self.names)}
        wanted = torch.tensor([number[name] for name in names])
        self.mean, self.spread = features.mean(0), features.std(0) + 1e-6
        self.layer = nn.Linear(features.shape[1], len(self.names))
        normed = (features - self.mean) / self.spread
        optimizer = torch.optim.AdamW(self.layer.parameters(), 1e-3, weight_decay=0.05)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (steps - step) / steps))
        for _ in range(steps):
            chosen = torch.randint(len(normed), (512,))
            loss = F.cross_entropy(self.layer(F.dropout(normed[chosen], 0.5)), wanted[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()

    @torch.no_grad()
    def right(self, features: Tensor, names: Sequence[str]) -> int:
        """How many of these it names; a name that it never learned is wrong."""
        said = self.layer((features - self.mean) / self.spread).argmax(1).tolist()
        return sum(self.names[index] == name for index, name in zip(said, names, strict=True))


@dataclass(frozen=True)
class Row:
    """Answers of one encoder to one task: the mean over seeds, and the interval of so many pictures."""

    probe: str
    task: str
    encoder: str
    n: int
    right: float
    interval: tuple[float, float]


def rows(name: str, probe: Probe, encoders: tuple[Encoder, ...], *, share: float, seeds: int) -> list[Row]:
    """Learn and ask a probe, for each encoder."""

    def sized(part: Part) -> Part:
        return replace(part, count=max(1, int(part.count * share)))

    features, names = joined(seen(sized(part), "train", encoders) for part in probe.learn)
    asked = {part.task: seen(sized(part), "test", encoders) for part in probe.ask}
    found = []
    for index, encoder in enumerate(encoders):
        probes = [Linear(features[index], names, seed=seed) for seed in range(seeds)]
        for task, (looks, wanted) in asked.items():
            right = statistics.mean(one.right(looks[index], wanted) for one in probes)
            n = len(wanted)
            found.append(Row(name, task, encoder.name, n, right / n, wilson(round(right), n)))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, metavar="VARIANT:PIXELS")
    parser.add_argument("--probes", nargs="+", default=list(PROBES), choices=list(PROBES))
    parser.add_argument("--share", type=float, default=1.0, help="of the pictures")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args(arguments)
    encoders = tuple(Encoder(name) for name in given.encoders)
    for name in given.probes:
        for row in rows(name, PROBES[name], encoders, share=given.share, seeds=given.seeds):
            print(json.dumps(asdict(row)), flush=True)


if __name__ == "__main__":
    main()
