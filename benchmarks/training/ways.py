"""Ways to train, each as what is timed: the batches of a round, and a step on one of them.

ours            the objects of `vlora train`: Looks, MicroBatches, loader, Collator, Learner, its loss
recipe          `recipe.py`, on random batches of single rows
visual tokens   `tokens.py`, on our batches
levers          ours with one of its parts switched to what the recipe does
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlora.compare.baseline import baseline_loss
from vlora.train.config import TrainConfig, TrainSection
from vlora.train.learner import Learner, build

from .counts import Counter, Size
from .data import OneByOne, Rounds
from .recipe import Recipe, everywhere, recompute
from .tokens import Expanding, baseline_of

CPU = torch.device("cpu")


@dataclass
class Way:
    """A way to train.

    Args:
        batches: of a round, read while it is timed.
        loss: of a batch.
        optimizer: of what learns.
        flops: of a batch.
        switched: what is switched while it runs.
        visual: visual tokens of a text.
    """

    batches: Callable[[int], Iterator[dict[str, Any]]]
    loss: Callable[[dict[str, Any]], Tensor]
    optimizer: torch.optim.Optimizer
    flops: Callable[[Size], int]
    switched: Callable[[], Any] | None = None
    visual: int = 0

    def text_tokens(self, sizes: Iterable[Size]) -> int:
        """Text tokens of batches; visual tokens and padding are none."""
        return sum(size.tokens - size.rows * self.visual for size in sizes)

    def step(self, batch: dict[str, Any], *, max_grad_norm: float = 1.0) -> None:
        """Forward, backward, clip, update."""
        self.loss(batch).backward()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def ours(config: TrainConfig, rounds: Rounds) -> tuple[Learner, Way]:
    """The learner of a config, and its way."""
    learner = build(config, CPU)
    learner.model.train()
    randomize_b(learner)
    optimizer = adamw(learner.groups(config.train), config.train)
    counter = Counter.of(learner.model.config)
    return learner, Way(
        batches=lambda number: rounds.by_length(learner.processor, number, CPU),
        loss=lambda batch: our_loss(learner, batch),
        optimizer=optimizer,
        flops=counter.ours,
    )


def our_loss(learner: Learner, batch: dict[str, Any]) -> Tensor:
    """As the trainer computes it."""
    inputs = {name: value for name, value in batch.items() if name != "seen"}
    return learner.model(**inputs, supervised_only=True, use_cache=False).loss


def recipe(config: TrainConfig, rounds: Rounds, *, like: Learner) -> tuple[Recipe, Way]:
    """The plain reference with the weights of a learner, and its way."""
    learner = build(config, CPU)
    learner.bridge.load_state_dict(like.bridge.state_dict())
    reference = Recipe(learner.model)
    reference.train()
    counter = Counter.of(learner.model.config)
    rows = OneByOne(rounds.source)
    return reference, Way(
        batches=lambda number: rounds.one_by_one(learner.processor, rows, number, CPU),
        loss=reference,
        optimizer=adamw(learner.groups(config.train), config.train),
        flops=counter.recipe,
    )


def visual_tokens(config: TrainConfig, rounds: Rounds, *, share: int) -> Way:
    """The visual-token baseline.

    Args:
        config: with an encoder whose features are as many as the wanted tokens.
        rounds: the looks.
        share: take every so manieth look of each batch only; its time a look hardly depends on how many there are.
    """
    learner = build(config, CPU)
    counter = Counter.of(learner.model.config)
    model, processor = baseline_of(learner)
    collate = Expanding(model, processor)

    def batches(number: int) -> Iterator[dict[str, Any]]:
        return rounds.by_length(processor, number, CPU, collate=lambda items: collate(items[::share]))

    return Way(
        batches=batches,
        loss=lambda batch: baseline_loss(model, {name: value for name, value in batch.items() if name != "seen"}),
        optimizer=adamw([{"params": list(model.model.multi_modal_projector.parameters())}], config.train),
        flops=counter.tokens,
        visual=int(model.config.image_seq_length),
    )


def adamw(groups: list[dict[str, Any]], section: TrainSection) -> torch.optim.Optimizer:
    """The trainer's optimiser."""
    return torch.optim.AdamW(groups, lr=section.learning_rate, betas=section.betas, fused=True)


def randomize_b(learner: Learner) -> None:
    """B away from zero, as it is after the first step, so that every gradient is one."""
    with torch.no_grad():
        for b in learner.bridge.b.parameters():  # type: ignore[union-attr]
            b.normal_(std=0.02)


# ---- levers -----------------------------------------------------------------------------------------


def levers(learner: Learner, way: Way, rounds: Rounds) -> dict[str, Way]:
    """Ours with one lever off each."""

    def lever(loss: Any = None, batches: Any = None, switched: Any = None) -> Way:
        return Way(batches or way.batches, loss or way.loss, way.optimizer, way.flops, switched)

    other = "sdpa" if learner.config.model.attention == "eager" else "eager"
    return {
        "batches at random": lever(batches=lambda number: rounds.at_random(learner.processor, number, CPU)),
        "logits everywhere": lever(loss=lambda batch: _loss_everywhere(learner, batch)),
        "recomputation": lever(switched=lambda: _recomputing(learner)),
        "backward to the bottom": lever(switched=lambda: _input_gradients(learner)),
        "low-rank path in bfloat16": lever(switched=lambda: _low_rank_in(learner, torch.bfloat16)),
        f"attention {other}": lever(switched=lambda: _attention(learner, other)),
    }


def _loss_everywhere(learner: Learner, batch: dict[str, Any]) -> Tensor:
    names = ("input_ids", "attention_mask", "pixel_values", "image_index")
    inputs = {name: batch[name] for name in names if name in batch}
    hidden = learner.model.model(**inputs, use_cache=False).last_hidden_state
    return everywhere(learner.model.lm_head, hidden, batch["labels"], batch["loss_weights"])


@contextmanager
def _recomputing(learner: Learner) -> Generator[None]:
    language_model: Any = learner.language_model
    recompute(language_model)
    # It would stay behind, and let every later backward pass go down to the embeddings.
    language_model.disable_input_require_grads()
    try:
        yield
    finally:
        recompute(language_model, wanted=False)


@contextmanager
def _input_gradients(learner: Learner) -> Generator[None]:
    def require(_module: nn.Module, _args: Any, output: Tensor) -> None:
        output.requires_grad_(True)

    handle = learner.model.get_input_embeddings().register_forward_hook(require)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _low_rank_in(learner: Learner, dtype: torch.dtype) -> Generator[None]:
    body = learner.model.model
    body.worn_form = lambda weights: weights.to(dtype)
    try:
        yield
    finally:
        del body.worn_form


@contextmanager
def _attention(learner: Learner, kernel: str) -> Generator[None]:
    language_model: Any = learner.language_model
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation(kernel)
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)
