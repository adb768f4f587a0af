"""`vlora train CONFIG --plan`, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._output import out, print_json, say

if TYPE_CHECKING:
    from rich.table import Table

    from ..cost.memory import Memory
    from ..train.config import TrainConfig
    from ..train.plan import Plan, Side

_MEMORY = (
    ("frozen", "frozen weights"),
    ("trained", "trained weights"),
    ("copies", "casts, gathered shards"),
    ("gradients", "gradients"),
    ("buckets", "gradients on their way"),
    ("optimizer", "optimizer"),
    ("language_model", "activations: language model"),
    ("bridge", "             generator, projector"),
    ("encoder", "             vision encoder"),
    ("factors", "A of the images, and its gradient"),
    ("logits", "logits"),
    ("runtime", "driver and workspaces"),
)


def show_plan(
    config: TrainConfig,
    *,
    gpus: int,
    gpu_memory: float,
    gpu_tflops: float,
    utilisation: float,
    samples: int | None,
    tokens: int | None,
    supervised: int | None,
    as_json: bool,
) -> None:
    """Make a plan and print it."""
    from ..train.plan import Hardware, make_plan

    hardware = Hardware(gpus=gpus, gpu_memory=gpu_memory * 1e9, gpu_flops=gpu_tflops * 1e12, utilisation=utilisation)
    plan = make_plan(config, hardware=hardware, samples=samples, tokens=tokens, supervised=supervised)
    if as_json:
        print_json(plan.to_dict())
        return
    _show(plan)


def _show(plan: Plan) -> None:
    config, hardware, rows = plan.config, plan.hardware, plan.rows
    gpus = f"{hardware.gpus} GPU{'' if hardware.gpus == 1 else 's'}"
    say(
        f"{config.name}: stage {config.stage}, paradigm {config.paradigm}; "
        f"{_name(config.model.language_model)} looks through {_name(config.model.vision)}"
    )
    many = "" if plan.accumulation == 1 else f", {plan.accumulation} times a step"
    say(
        f"on {gpus} of {hardware.gpu_memory / 1e9:g} GB and {hardware.gpu_flops / 1e12:g} TFLOP/s, used to "
        f"{hardware.utilisation:.0%}: {plan.micro_batch} images at a time on each{many}, "
        f"{rows.questions} x {rows.tokens} text tokens each, {rows.supervised} supervised"
    )
    out().print(_parameters(plan))
    out().print(_work(plan))
    out().print(_time(plan))
    out().print(_memory(plan))
    say(f"data         {_data(plan)}")
    say(
        f"loaders      {plan.images_per_second:,.0f} images/s for all GPUs: {plan.loader_cores:.1f} cores that decode "
        "without pause, at 7 ms an image"
    )
    for warning in plan.warnings:
        say(f"warning      {warning}")
    say("Times are work over speed: see docs/plan.md for what is counted, and what is not.")


def _name(source: str) -> str:
    return source if source.count("/") < 2 else Path(source).name


def _table(first: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _sides(plan: Plan) -> tuple[Side, Side]:
    return plan.sides["weights"], plan.sides["visual-tokens"]


def _headings(plan: Plan) -> tuple[str, str]:
    return "weights", f"{plan.shapes.encoder.features:,} visual tokens"


def _parameters(plan: Plan) -> Table:
    table = _table("parameters", *_headings(plan))
    left, right = _sides(plan)
    for one, other in zip(left.parts, right.parts, strict=True):
        name = one.name if one.name == other.name else f"{one.name}, {other.name}"
        table.add_row(f"{name} ({'learns' if one.trained else 'frozen'})", f"{one.numbers:,}", f"{other.numbers:,}")
    table.add_section()
    table.add_row("learn, all together", f"{left.trained:,}", f"{right.trained:,}", style="bold")
    return table


def _work(plan: Plan) -> Table:
    table = _table("TFLOPs of a sample", *_headings(plan))
    sides = _sides(plan)
    for name in ("forward", "backward"):
        passes = [getattr(side.step, name) for side in sides]
        table.add_row(name, *(_tera(work.total) for work in passes))
        for part, label in (
            ("encoder", "vision encoder"),
            ("bridge", "generator, projector"),
            ("language_model", "language model"),
            ("logits", "logits"),
        ):
            table.add_row(f"  {label}", *(_tera(getattr(work, part)) for work in passes), style="dim")
    table.add_row("recomputed with gradient checkpointing", *(_tera(side.step.recompute) for side in sides))
    table.add_section()
    table.add_row("as it is trained here", *(_tera(side.flops) for side in sides), style="bold")
    for label, checkpointing in (("as papers count, without checkpointing", False), ("  with it", True)):
        table.add_row(label, *(_tera(side.plain.total(checkpointing=checkpointing)) for side in sides))
    return table


def _time(plan: Plan) -> Table:
    table = _table("speed", *_headings(plan))
    sides = _sides(plan)
    table.add_row("gradient checkpointing", *("on" if side.checkpointing else "off" for side in sides))
    table.add_row("samples/s of a GPU", *(_number(side.samples_per_second) for side in sides))
    table.add_row("  as papers count", *(_pair(side.plain_samples_per_second) for side in sides), style="dim")
    table.add_row("time", *(_duration(side.hours) for side in sides), style="bold")
    plain = [" / ".join(_duration(hours) for hours in side.plain_hours or (None,)) for side in sides]
    table.add_row("  as papers count", *plain, style="dim")
    return table


def _memory(plan: Plan) -> Table:
    """Of a GPU, in GB: the parts of the way that is taken, and the sums of the others."""
    table = _table("GB of a GPU", *_headings(plan))
    sides = _sides(plan)
    table.add_row("shared by", *(_way(plan, side.strategy) for side in sides))
    for field, label in _MEMORY:
        sizes = [getattr(side.peak, field) for side in sides]
        if any(sizes):
            table.add_row(label, *(_giga(size) for size in sizes))
    table.add_section()
    table.add_row("peak", *(_giga(side.peak.total) for side in sides), style="bold")
    table.add_row("largest micro-batch that fits", *(f"{side.largest_micro_batch:,}" for side in sides))
    states = [_giga(side.memory["ddp"][False].plain_states) for side in sides]
    table.add_row("weights, gradients, optimizer, as papers count (ddp)", *states, style="dim")
    table.add_section()
    for way in sides[0].memory if plan.hardware.gpus > 1 else ("ddp",):
        both: list[tuple[Memory, Memory]] = [side.memory[way] for side in sides]
        cells = [" / ".join(_giga(memory.total) for memory in pair) for pair in both]
        table.add_row(f"{_way(plan, way)}: without / with checkpointing", *cells)
    return table


def _way(plan: Plan, way: str) -> str:
    return way if plan.hardware.gpus > 1 else "nobody"


def _data(plan: Plan) -> str:
    amount, batch = plan.amount, plan.config.train.images_per_step
    origin = {"counted": "counted", "limit": "by the limits of data.sources", "given": "given"}
    if amount.samples is None:
        known = "an unknown number of samples"
    else:
        bare = f", {amount.without_image:,} of them without an image" if amount.without_image else ""
        known = f"{amount.samples:,} samples ({origin[amount.origin]}{bare})"
    if amount.steps is None or amount.seen is None:
        return known
    times = amount.seen / amount.samples if amount.samples else 0
    passes = f", {times:.3g} pass{'' if times == 1 else 'es'}" if times else ""
    return f"{known}; {amount.steps:,} steps of {batch:,}{passes}"


def _pair(values: tuple[float, float]) -> str:
    return " / ".join(_number(value) for value in values)


def _duration(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    for unit, seconds in (("h", 3600), ("min", 60)):
        if hours * 3600 >= seconds:
            return f"{_number(hours * 3600 / seconds)} {unit}"
    return f"{_number(hours * 3600)} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _tera(flops: int) -> str:
    value: Any = flops / 1e12
    return "-" if not flops else f"{value:.3g}" if value < 0.1 else f"{value:.2f}"


def _giga(size: int) -> str:
    value = size / 1e9
    return "-" if not size else f"{value:.2g}" if value < 1 else f"{value:.1f}"
