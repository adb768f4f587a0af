"""What to change in a config before it costs GPU hours: each finding is one sentence, with the number behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..cost.memory import GIGABYTE, STRATEGIES
from ..cost.sources import find, is_checkpoint
from ..errors import VLoRAError
from .config import TrainConfig, load_config
from .counting import Counted, name_of

if TYPE_CHECKING:
    from .plan import Plan

FEW_STEPS = 100
"""Fewer optimiser steps than so many are no training, whatever the schedule."""

MANY_PASSES = 20
"""More passes than so many over the same samples learn them by heart."""


def advise(plan: Plan, counts: Sequence[Counted | None]) -> tuple[str, ...]:
    """Every finding about a plan.

    Args:
        plan: all but its warnings.
        counts: samples of each of the config's sources, None for those whose files do not tell.
    """
    findings = (_memory, _recomputation, _sharing, _batch, _rates, _schedule, _texts, _checkpoint, _looks, _loaders)
    found = [sentence for finding in findings for sentence in finding(plan)]
    return (*found, *_rows_without_image(plan, counts))


def _budget(plan: Plan) -> float:
    from .plan import HEADROOM

    return HEADROOM * plan.hardware.gpu_memory


def _memory(plan: Plan) -> Iterator[str]:
    """It does not fit: how it would."""
    own, budget = plan.own, _budget(plan)
    recomputing = own.memory[own.strategy][True]
    if own.peak.total <= budget or (not own.checkpointing and recomputing.total <= budget):
        return  # the latter is told by `_recomputation`
    what = f"a step needs {_gb(own.peak.total)} of the {_gb(budget)} that a GPU of {_gb(plan.hardware.gpu_memory)} has"
    ways = [way for way in STRATEGIES if way != own.strategy and own.memory[way][own.checkpointing].total <= budget]
    if plan.hardware.gpus > 1 and ways:
        peak = own.memory[ways[0]][own.checkpointing].total
        yield f"Does not fit: {what}; with {_divided(plan, ways[0])} it takes {_gb(peak)}."
    elif own.largest_micro_batch:
        yield (
            f"Does not fit: {what}; set train.images_per_device to {own.largest_micro_batch} or less, "
            f"which keeps the global batch of {plan.config.train.images_per_step}."
        )
    else:
        states = own.peak.states + own.peak.runtime
        yield (
            f"Does not fit: {what}, and weights, gradients and optimizer alone take {_gb(states)}; use more or larger "
            f"GPUs, {_divided(plan, 'fsdp')}, or train.language_model: lora."
        )


def _divided(plan: Plan, way: str) -> str:
    """The settings that share the work in this way."""
    possible = way == "ddp" or plan.config.train.divisible
    return ("" if possible else "train.optimizer: adamw and ") + f"train.parallel: {way}"


def _recomputation(plan: Plan) -> Iterator[str]:
    """Gradient checkpointing that memory does not ask for, or that it would."""
    own, budget = plan.own, _budget(plan)
    asked = plan.config.train.gradient_checkpointing
    without, recomputing = own.memory[own.strategy]
    if asked == "on" and without.total <= budget:
        dear = own.step.recompute / own.step.total(checkpointing=False)
        yield (
            f"Gradient checkpointing is on and not needed: a step takes {_gb(without.total)} without it, of "
            f"{_gb(budget)}, and recomputation adds {dear:.0%} to the work; set train.gradient_checkpointing: auto."
        )
    if asked == "off" and without.total > budget >= recomputing.total:
        yield (
            f"Gradient checkpointing is off and needed: a step takes {_gb(without.total)} without it and "
            f"{_gb(recomputing.total)} with it, of {_gb(budget)}; set train.gradient_checkpointing: auto."
        )


def _sharing(plan: Plan) -> Iterator[str]:
    """Shards where every GPU could hold all of it."""
    own, whole = plan.own, plan.own.memory["ddp"][plan.own.checkpointing]
    if plan.hardware.gpus > 1 and own.strategy != "ddp" and whole.total <= _budget(plan):
        yield (
            f"train.parallel: {own.strategy} is not needed: with ddp a step takes {_gb(whole.total)} of "
            f"{_gb(_budget(plan))}, and only the gradients of what learns ({_gb(whole.gradients)}) travel."
        )


def _batch(plan: Plan) -> Iterator[str]:
    """A global batch that GPUs cannot share evenly."""
    batch, gpus, images = plan.config.train.images_per_step, plan.hardware.gpus, plan.micro_batch
    if batch < gpus:
        yield f"A step has {batch} images for {gpus} GPUs: {gpus - batch} of them have nothing to do."
    elif batch % gpus:
        yield (
            f"train.images_per_step {batch} is no multiple of {gpus} GPUs: some get {math.ceil(batch / gpus)} images, "
            f"some {batch // gpus}, and all wait for the fullest; {batch // gpus * gpus} is even."
        )
    elif (batch // gpus) % plan.accumulation:
        yield (
            f"{batch // gpus} images of a GPU are no multiple of its {plan.accumulation} micro-batches of up to "
            f"{images}; an images_per_device that divides {batch // gpus} wastes nothing."
        )


def _rates(plan: Plan) -> Iterator[str]:
    """Settings of parts that do not learn."""
    train = plan.config.train
    set_ = train.model_fields_set
    if train.language_model_rate is not None and train.language_model == "frozen":
        yield f"train.language_model_rate {train.language_model_rate:g} has no effect: the language model is frozen."
    if train.vision_rate is not None and train.vision == "frozen":
        yield f"train.vision_rate {train.vision_rate:g} has no effect: the vision encoder is frozen."
    if train.output_rate != 1 and (plan.config.paradigm == "visual-tokens" or train.generator == "frozen"):
        yield f"train.output_rate {train.output_rate:g} has no effect: no B of a generator learns here."
    if "lora" in set_ and train.language_model != "lora":
        yield f"train.lora (rank {train.lora.rank}) has no effect: train.language_model is {train.language_model}."


def _schedule(plan: Plan) -> Iterator[str]:
    """Runs too short to train, too long for their data, or whose schedule does not fit into them."""
    train, amount = plan.config.train, plan.amount
    if amount.steps is None:
        yield (
            "The length of the run is unknown: the files do not tell how many samples they hold; give --samples, or a "
            "limit to each of data.sources."
        )
        return
    if amount.steps < FEW_STEPS:
        yield (
            f"The run has {amount.steps} steps of {train.images_per_step} images, where even a small generator needs "
            "some hundreds: lower images_per_step, or train longer."
        )
    if amount.samples and amount.seen and amount.seen / amount.samples > MANY_PASSES:
        passes = amount.seen / amount.samples
        yield f"The run passes {passes:.0f} times over {amount.samples:,} samples: it will learn them by heart."
    if train.warmup_steps is not None and train.warmup_steps >= amount.steps:
        yield f"train.warmup_steps {train.warmup_steps} is not below the {amount.steps} steps: the rate only rises."
    elif train.schedule == "constant" and train.decay_steps >= amount.steps:
        yield f"train.decay_steps {train.decay_steps} is not below the {amount.steps} steps: the rate falls all along."


def _texts(plan: Plan) -> Iterator[str]:
    """Texts that are cut."""
    limit = plan.config.data.max_text_tokens
    if limit is not None and limit < plan.rows.tokens:
        yield f"data.max_text_tokens {limit} is below the {plan.rows.tokens} tokens of this plan: texts will be cut."


def _checkpoint(plan: Plan) -> Iterator[str]:
    """A checkpoint that is not there yet, or of another generator than the config describes."""
    named = plan.config.model.checkpoint
    if named is None:
        return
    if not (Path(named) / "config.json").is_file():
        yield f"model.checkpoint {named} is not there yet: sizes are those of the other fields of model."
        return
    try:
        begun = find(named)
    except VLoRAError as error:
        yield f"model.checkpoint cannot be read: {error}"
        return
    if not is_checkpoint(begun):
        yield f"model.checkpoint {named} is a {begun.config.model_type} model, from which no VLoRA training can begin."
        return
    kept = begun.config.generator_config
    for name, wanted in plan.config.model.generator.items():
        has = getattr(kept, name)
        if _plain(has) != _plain(wanted):
            yield (
                f"model.generator.{name} {wanted} has no effect: the checkpoint {named} has {has}, and training goes "
                "on with that."
            )


def _looks(plan: Plan) -> Iterator[str]:
    """A run that goes on from another one, and sees from its first step on what that one saw."""
    config, named = plan.config, plan.config.model.checkpoint
    if named is None:
        return
    folder = Path(named).parent
    try:
        before = load_config(folder / "config.yaml")
    except VLoRAError:  # there is none, or some other program's
        return
    if _order(before) == _order(config):
        yield (
            f"train.seed {config.train.seed} is that of the run in {folder}, whose sources are the same: its "
            "looks come again from the first on, and teach less than the training loss says. Give another seed."
        )


def _order(config: TrainConfig) -> tuple[object, ...]:
    """What decides which samples of each source come first."""
    return config.train.seed, *((source.format, source.path) for source in config.data.sources)


def _plain(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, list | tuple) else value


def _loaders(plan: Plan) -> Iterator[str]:
    """Fewer workers than images need."""
    workers, gpus = plan.config.data.workers, plan.hardware.gpus
    if workers != "auto" and workers * gpus < math.floor(plan.loader_cores):
        yield (
            f"data.workers {workers} on {gpus} GPUs are {workers * gpus} processes, and {plan.images_per_second:,.0f} "
            f"images/s take {plan.loader_cores:.0f} cores at 7 ms each: the GPUs will wait."
        )


def _rows_without_image(plan: Plan, counts: Sequence[Counted | None]) -> Iterator[str]:
    """Plain text teaches a generator nothing."""
    if plan.learning.language_model != "frozen":
        return
    for source, counted in zip(plan.config.data.sources, counts, strict=True):
        if counted and counted.without_image:
            part = "generator" if plan.config.paradigm == "weights" else "projector"
            yield (
                f"{counted.without_image:,} of {counted.samples:,} samples of {name_of(source)} have no image and "
                f"teach nothing: the language model is frozen, and the {part} does not see them; leave them out."
            )


def _gb(size: float) -> str:
    return f"{size / GIGABYTE:.1f} GB"
