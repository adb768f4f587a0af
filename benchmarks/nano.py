"""What seeing costs the nano model: worn against bare against visual tokens.

    .venv/bin/python benchmarks/nano.py [--rounds 15] [--threads 2]

Three ways to run the same language model on the same prompt:

    bare            text only
    worn            the image as perceptual weights, no visual token        (encode: vision, trunk, heads)
    visual tokens   the same features through a linear projection, one token per patch, before the text
                    (encode: vision, projection; the weights of the projection are random, which costs the same)

The three are measured in turns, round after round, in one process, so that a machine whose speed drifts slows all of
them alike; what counts are the ratios, of medians, with the interquartile range of the ratio over rounds.
Prefill is the prompt's forward pass, decode one further token with a cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

import vlora
from vlora.model.vision import encode as features_of

QUESTION = "What colour is the shape in the picture, and is there a triangle?"
WAYS = ("bare", "worn", "visual tokens")


class Way:
    """One way to run the model: its encode, prefill and decode as functions without arguments."""

    def __init__(self, encode: Callable[[], Any], prefill: Callable[[], Any], decode: Callable[[], Any]) -> None:
        self.steps = {"encode": encode, "prefill": prefill, "decode": decode}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    eyes = vlora.load("nano", device="cpu")
    with torch.inference_mode():
        result = measure(ways(eyes), arguments.rounds)
    report = {
        "commit": commit(),
        "machine": platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "text_tokens": int(eyes.tokens([QUESTION])["input_ids"].shape[1]),
        "visual_tokens": eyes.model.model.generator.patches,
        **result,
    }
    show(report)
    print(json.dumps(report))


def ways(eyes: vlora.Eyes) -> dict[str, Way]:
    """The three ways, on one random image and one question."""
    model, llm = eyes.model.model, eyes.model
    text = eyes.tokens([QUESTION])["input_ids"]
    size = model.config.vision_config.image_size
    pixels = torch.randn(1, 3, size, size)
    projection = torch.nn.Linear(model.generator.vision_dim, model.config.text_config.hidden_size)
    embed = model.get_input_embeddings()

    def features() -> torch.Tensor:
        return features_of(model.vision_tower, pixels, feature_layer=-2, select="default")

    def weights() -> torch.Tensor:
        return model.expand(model.perceive(pixels)).values

    worn, tokens = weights(), projection(features())
    prompts = {
        "bare": {"input_ids": text},
        "worn": {"input_ids": text, "perceptual_weights": worn},
        "visual tokens": {"inputs_embeds": torch.cat([tokens, embed(text)], dim=1)},
    }
    encoders: dict[str, Callable[[], Any]] = {
        "bare": lambda: None,
        "worn": weights,
        "visual tokens": lambda: projection(features()),
    }
    return {name: _way(llm, encoders[name], prompts[name]) for name in WAYS}


def _way(llm: Any, encode: Callable[[], Any], prompt: dict[str, Any]) -> Way:
    cache = llm(**prompt, use_cache=True).past_key_values
    rest = {name: value for name, value in prompt.items() if name == "perceptual_weights"}
    token = torch.tensor([[1]])

    def prefill() -> None:
        llm(**prompt, use_cache=True, logits_to_keep=1)

    def decode() -> None:
        llm(input_ids=token, past_key_values=cache, use_cache=True, **rest)
        cache.crop(-1)  # every measured step sees the same context

    return Way(encode, prefill, decode)


def measure(ways_of: dict[str, Way], rounds: int) -> dict[str, Any]:
    """Milliseconds and ratios to `bare`, the ways in turns."""
    times: dict[str, dict[str, list[float]]] = {n: {s: [] for s in way.steps} for n, way in ways_of.items()}
    for number in range(rounds + 2):  # two rounds to warm up
        for name, way in ways_of.items():
            for step, function in way.steps.items():
                began = time.perf_counter()
                function()
                if number >= 2:
                    times[name][step].append((time.perf_counter() - began) * 1000)
    milliseconds = {n: {s: round(statistics.median(t), 2) for s, t in steps.items()} for n, steps in times.items()}
    ratios = {
        f"{name} / {base}": {step: ratio(times[name][step], times[base][step]) for step in ("prefill", "decode")}
        for name, base in (("worn", "bare"), ("visual tokens", "bare"), ("worn", "visual tokens"))
    }
    ratios["worn / visual tokens"]["encode"] = ratio(times["worn"]["encode"], times["visual tokens"]["encode"])
    return {"milliseconds": milliseconds, "ratios": ratios}


def ratio(a: list[float], b: list[float]) -> list[float]:
    """Median of the round-by-round ratio, and its quartiles."""
    quarters = statistics.quantiles([x / y for x, y in zip(a, b, strict=True)], n=4)
    return [round(q, 3) for q in (quarters[1], quarters[0], quarters[2])]


def show(report: dict[str, Any]) -> None:
    """A table for people."""
    print(
        f"{report['text_tokens']} text tokens, {report['visual_tokens']} visual tokens in the third way; "
        f"{report['threads']} threads, {report['rounds']} rounds, commit {report['commit']}"
    )
    for name, steps in report["milliseconds"].items():
        print(f"{name:>24}: " + "  ".join(f"{step} {value:8.2f} ms" for step, value in steps.items()))
    for name, steps in report["ratios"].items():
        words = (f"{step} {middle:.2f} ({low:.2f}-{high:.2f})" for step, (middle, low, high) in steps.items())
        print(f"{name:>24}: " + "  ".join(words))


def commit() -> str:
    """The commit this was run on, or `unknown`."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
