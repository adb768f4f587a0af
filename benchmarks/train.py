"""What a training step costs: ours, against the authors' recipe written plainly, and against visual tokens.

    .venv/bin/python benchmarks/train.py [--rounds 8] [--looks 32] [--steps 1] [--threads 2] [--quick]
    .venv/bin/python benchmarks/train.py --shape 7b [--batch 96] [--text-tokens 32] [--peak 798]      (a CUDA GPU)

Stage one of the nano model (SmolLM2-135M, EfficientNet-Lite0, the generator of `configs/easy-vqa.yaml`; language model
and encoder frozen), on made-up captions of 8 to 40 words, one text an image (`training/data.py`):

    ours            the objects of `vlora train`, from the loader to the optimiser
    recipe          plain: random batches padded to their longest text, logits everywhere in float32, recomputation with
                    gradients down to the embeddings, plain attention, an einsum for each factor (`training/recipe.py`)
    visual tokens   the baseline of `vlora.compare` with 256 tokens an image, batches and step as lean as ours; it sees
                    the image in 256 px for that, which is 1 % of its work, and every fourth look of a batch

and on easy-VQA's questions as `configs/easy-vqa.yaml` has them, four about an image: ours and the recipe, for which
each question is a sample with an image of its own.

All draw their batches from the same 32 steps, and have the same precision of the frozen parts (the faster one here), a
low-rank path in float32, and the same optimiser. Before anything is timed, ours and the recipe must give the same loss
and the same gradients on one batch. The ways take turns, round after round, in one process; what counts are the ratios
of a round, of seconds by the text token (see `Rounds`).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from training import gpu, parity, ways
from training.counts import Size
from training.data import WINDOW, Captions, Rounds

from vlora.model import register
from vlora.train.config import load_config
from vlora.train.learner import frozen_precision
from vlora.train.loader import open_sources

CONFIG = Path(__file__).parents[1] / "configs" / "nano.yaml"
TOKENS_SHARE = 4
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
OURS, RECIPE, TOKENS = "ours", "recipe", "visual tokens"


def main() -> None:
    """Measure and print."""
    arguments = parse()
    if arguments.shape == "7b":
        report = gpu.measure(
            batch=arguments.batch, text_tokens=arguments.text_tokens, peak=arguments.peak, steps=arguments.rounds * 3
        )
        print(gpu.told(report), json.dumps(report | about(arguments)), sep="\n")
        return
    register()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    precision = str(frozen_precision("auto", torch.device("cpu"))).removeprefix("torch.")
    options = [f"model.dtype={precision}", "train.device=cpu"]
    report = about(arguments) | {"frozen_precision": precision}
    report["captions"] = captions(arguments, options)
    show("captions, one an image", report["captions"])
    report["questions"] = questions(arguments, options)
    show("questions, four an image", report["questions"])
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("nano", "7b"), default="nano")
    parser.add_argument("--rounds", type=int, default=8, help="of captions; levers and questions get two fifths of it")
    parser.add_argument("--looks", type=int, default=32, help="of a step")
    parser.add_argument("--steps", type=int, default=1, help="of a round")
    parser.add_argument("--spread", type=float, default=0.4, help="log-deviation of a caption's number of words")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="two rounds of 4 looks a step, to see that it works")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: with one thread, on a machine in use")
    parser.add_argument("--config", type=Path, default=CONFIG, help="of the model, and of the questions")
    parser.add_argument("--batch", type=int, default=96, help="7b: images of a step")
    parser.add_argument("--text-tokens", type=int, default=32, help="7b: of a caption")
    parser.add_argument("--peak", type=float, default=798, help="7b: dense bfloat16 TFLOP/s of the GPU")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.looks, arguments.steps = 2, 4, 2
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds} gives no spread: use at least 2.")
    return arguments


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """What stands beside every number."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "commit": done.stdout.strip() or "unknown",
        "command": " ".join(sys.argv),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "seed": 0,
        "threads": torch.get_num_threads(),
        "clock": arguments.clock,
        "rounds": arguments.rounds,
        "looks_per_step": arguments.looks,
        "steps_per_round": arguments.steps,
        "spread": arguments.spread,
    }


def captions(arguments: argparse.Namespace, options: list[str]) -> dict[str, Any]:
    """One text an image: all three ways, and the levers."""
    config = load_config(arguments.config, [*options, "data.questions_per_image=1"])
    source = Captions(arguments.looks * WINDOW, spread=arguments.spread)
    rounds = Rounds(source, looks=arguments.looks, steps=arguments.steps, per_look=1)
    learner, own = ways.ours(config, rounds)
    reference, plain = ways.recipe(config, rounds, like=learner)
    agreed = parity.check(learner, reference, next(rounds.by_length(learner.processor, 0, ways.CPU)), rows=4)
    wide = load_config(arguments.config, [*options, "model.vision_options.image_size=256"])
    tokens = ways.visual_tokens(wide, rounds, share=min(TOKENS_SHARE, arguments.looks))
    switched = ways.levers(learner, own, rounds)
    mean = rounds.tokens_per_text(learner.processor)
    timed = Timed(
        {OURS: own, RECIPE: plain, TOKENS: tokens} | switched, clock=CLOCKS[arguments.clock], tokens_per_text=mean
    )
    timed.warm_up()
    for number in range(arguments.rounds):
        timed.round(number, [OURS, RECIPE, TOKENS])
    few = max(2, arguments.rounds * 2 // 5)
    result = timed.report() | {"parity": agreed}
    for number in range(few):
        timed.round(number, [OURS, *switched], into="levers")
    return result | {"levers": {name: timed.ratio(name, OURS, group="levers") for name in switched}}


def questions(arguments: argparse.Namespace, options: list[str]) -> dict[str, Any]:
    """Four texts an image, as the nano model is trained."""
    looks = max(2, arguments.looks // 4)
    sources = json.dumps([{"format": "easy-vqa", "augment": True, "limit": looks * WINDOW}])
    config = load_config(arguments.config, [*options, f"data.sources={sources}"])
    (source,) = open_sources(config.data)
    rounds = Rounds(source, looks=looks, steps=arguments.steps, per_look=config.data.questions_per_image)
    learner, own = ways.ours(config, rounds)
    _, plain = ways.recipe(config, rounds, like=learner)
    mean = rounds.tokens_per_text(learner.processor)
    timed = Timed({OURS: own, RECIPE: plain}, clock=CLOCKS[arguments.clock], tokens_per_text=mean)
    timed.warm_up()
    for number in range(max(2, arguments.rounds * 2 // 5)):
        timed.round(number, [OURS, RECIPE])
    return timed.report()


class Timed:
    """Times of rounds.

    Args:
        all_ways: by name.
        clock: seconds.
        tokens_per_text: the mean over the window that all batches are from.
    """

    def __init__(self, all_ways: dict[str, ways.Way], *, clock: Callable[[], float], tokens_per_text: float) -> None:
        self.ways, self.clock, self.tokens_per_text = all_ways, clock, tokens_per_text
        self.seconds: dict[str, dict[str, list[float]]] = {}
        self.sizes: dict[str, list[Size]] = {}

    def warm_up(self) -> None:
        """One step of each, on a batch that is timed later too."""
        for way in self.ways.values():
            with way.switched() if way.switched else nullcontext():
                way.step(next(way.batches(0)))

    def round(self, number: int, names: list[str], *, into: str = "ways") -> None:
        """All steps of a round by each way; who begins, changes."""
        group = self.seconds.setdefault(into, {})
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            way = self.ways[name]
            sizes: list[Size] = []
            with way.switched() if way.switched else nullcontext():
                began = self.clock()
                for batch in way.batches(number):
                    sizes.append(Size.of(batch))
                    way.step(batch)
                elapsed = self.clock() - began
            group.setdefault(name, []).append(elapsed / way.text_tokens(sizes))
            if into == "ways":
                self.sizes.setdefault(name, []).extend(sizes)

    def report(self) -> dict[str, Any]:
        """Throughput of each way, and how many times faster ours is."""
        measured = self.seconds["ways"]
        return {
            "tokens_per_text": round(self.tokens_per_text, 1),
            "ways": {name: self._throughput(name) for name in measured},
            "faster_than": {name: self.ratio(name, OURS) for name in measured if name != OURS},
            "fewer_flops_than": {
                name: round(self._flops(name) / self._flops(OURS), 2) for name in measured if name != OURS
            },
        }

    def ratio(self, name: str, base: str, *, group: str = "ways") -> list[float]:
        """Median of the round-by-round ratio of seconds a text token, and its quartiles."""
        times = self.seconds[group]
        ratios = [x / y for x, y in zip(times[name], times[base], strict=True)]
        quarters = statistics.quantiles(ratios, n=4, method="inclusive")
        return [round(q, 3) for q in (quarters[1], quarters[0], quarters[2])]

    def _flops(self, name: str) -> float:
        """A text token."""
        way, sizes = self.ways[name], self.sizes[name]
        return sum(way.flops(size) for size in sizes) / way.text_tokens(sizes)

    def _throughput(self, name: str) -> dict[str, float]:
        sizes, seconds = self.sizes[name], statistics.median(self.seconds["ways"][name])
        tokens = sum(size.tokens for size in sizes)
        return {
            "texts_per_second": round(1 / seconds / self.tokens_per_text, 2),
            "text_tokens_per_second": round(1 / seconds, 1),
            "padding_share": round(1 - tokens / sum(size.rows * size.width for size in sizes), 3),
            "gigaflops_per_text": round(self._flops(name) * self.tokens_per_text / 1e9, 2),
            "gigaflops_per_second": round(self._flops(name) / 1e9 / seconds, 1),
        }


def show(title: str, result: dict[str, Any]) -> None:
    """A table for people."""
    print(title)
    if "parity" in result:
        agreed = result["parity"]
        print(
            f"  ours and the recipe agree: loss within {agreed['loss']:.1e}, gradients within {agreed['gradients']:.1e}"
        )
    for name, row in result["ways"].items():
        print(
            f"  {name:>13}: {row['texts_per_second']:7.2f} texts/s {row['text_tokens_per_second']:7.1f} text tokens/s  "
            f"padding {row['padding_share']:5.1%}  {row['gigaflops_per_text']:7.2f} GFLOP a text  "
            f"{row['gigaflops_per_second']:6.1f} GFLOP/s"
        )
    for name, (middle, low, high) in result["faster_than"].items():
        fewer = result["fewer_flops_than"][name]
        print(f"  ours / {name:>19}: {middle:.2f} ({low:.2f}-{high:.2f}) times as fast, by FLOPs {fewer:.2f}")
    for name, (middle, low, high) in result.get("levers", {}).items():
        print(f"  {name:>26}: {middle:.2f} ({low:.2f}-{high:.2f}) times the time of ours")


if __name__ == "__main__":
    main()
