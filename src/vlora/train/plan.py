"""What a config asks of GPUs before any weight is loaded: parameters, memory, FLOPs, hours, and what to change.

    config ─ sizes.py ─► shapes ─ cost/training.py, cost/memory.py ─► Side (weights), Side (visual tokens)
           ─ counting.py ─► samples                                            └─ advice.py ─► warnings

A time is work over speed: FLOPs of a sample over what a GPU really does, its peak times a utilisation. Nothing is
measured, and what arithmetic does not see (a slow loader, padding, small kernels) is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..cost.bill import Shapes
from ..cost.memory import GIGABYTE, STRATEGIES, Memory, step_memory
from ..cost.training import Learning, Rows, Step, plain_work, step_work
from ..errors import InputError
from ..model import VLoRAConfig
from ..model.packing import KERNELS
from .config import TrainConfig
from .counting import Amount, amount_of
from .sizes import Paradigm, Part, learning_of, meta_parts, model_config, precision_of, shapes_of

TOKENS = {"pretrain": 32, "finetune": 256}
"""Text tokens of a row where nobody says: a short caption, a few turns of conversation."""

HEADROOM = 0.92
"""The share of a device's memory that a plan may fill; an allocator loses the rest between its blocks."""

DECODE_SECONDS = 0.007
"""One core decodes and scales one photograph in about so long."""

PARADIGMS: tuple[Paradigm, ...] = ("weights", "visual-tokens")


@dataclass(frozen=True)
class Hardware:
    """What is trained on.

    Args:
        gpus: how many.
        gpu_memory: bytes of one.
        gpu_flops: FLOP/s of one, dense, in bfloat16.
        utilisation: share of them that training gets out.
    """

    gpus: int = 8
    gpu_memory: float = 80 * GIGABYTE
    gpu_flops: float = 798e12
    utilisation: float = 0.4


@dataclass(frozen=True)
class Side:
    """One paradigm on this hardware.

    Args:
        parts: numbers, and whether they learn.
        step: FLOPs of a sample, as our trainer computes it.
        plain: FLOPs of a sample as papers count them, see `cost.training`.
        memory: bytes of a GPU, by strategy, without and with gradient checkpointing.
        strategy: how the GPUs share the work: what the config says, or the first that fits.
        checkpointing: what the config says, or whether memory asks for it.
        largest_micro_batch: images at a time that still fit, so shared and with this choice of checkpointing.
        samples_per_second: of one GPU, by our count.
        plain_samples_per_second: by the other count, without and with checkpointing.
        hours: of the run on all GPUs; None if its length is unknown.
        plain_hours: likewise.
    """

    parts: tuple[Part, ...]
    step: Step
    plain: Step
    memory: dict[str, tuple[Memory, Memory]]
    strategy: str
    checkpointing: bool
    largest_micro_batch: int
    samples_per_second: float
    plain_samples_per_second: tuple[float, float]
    hours: float | None
    plain_hours: tuple[float, float] | None

    @property
    def peak(self) -> Memory:
        """The memory of the chosen way."""
        return self.memory[self.strategy][self.checkpointing]

    @property
    def flops(self) -> int:
        """Of a sample, the chosen way."""
        return self.step.total(checkpointing=self.checkpointing)

    @property
    def trained(self) -> int:
        """Numbers that learn."""
        return sum(part.numbers for part in self.parts if part.trained)


@dataclass(frozen=True)
class Plan:
    """What a config asks for.

    Args:
        config: the experiment.
        hardware: what it is planned for.
        shapes: of the parts.
        learning: which of them learn.
        rows: of text tokens; without visual tokens.
        micro_batch: images at a time on a GPU.
        accumulation: micro-batches of a step.
        amount: of data.
        sides: both paradigms, the config's own among them.
        images_per_second: that the loaders must deliver for all GPUs.
        warnings: each a sentence with its numbers.
    """

    config: TrainConfig
    hardware: Hardware
    shapes: Shapes
    learning: Learning
    rows: Rows
    micro_batch: int
    accumulation: int
    amount: Amount
    sides: dict[Paradigm, Side]
    images_per_second: float
    warnings: tuple[str, ...] = ()

    @property
    def own(self) -> Side:
        """Of the config's paradigm."""
        return self.sides[self.config.paradigm]

    @property
    def loader_cores(self) -> float:
        """Cores that decode images without pause."""
        return self.images_per_second * DECODE_SECONDS

    def to_dict(self) -> dict[str, Any]:
        """As JSON: bytes, FLOPs, samples per second of one GPU, hours of all."""
        config = self.config
        return {
            "name": config.name,
            "stage": config.stage,
            "paradigm": config.paradigm,
            "language_model": config.model.language_model,
            "vision": config.model.vision,
            "hardware": asdict(self.hardware),
            "text_tokens": self.rows.tokens,
            "supervised_tokens": self.rows.supervised,
            "questions_per_image": self.rows.questions,
            "images_per_step": config.train.images_per_step,
            "micro_batch": self.micro_batch,
            "accumulation": self.accumulation,
            "data": asdict(self.amount),
            "images_per_second": self.images_per_second,
            "loader_cores": self.loader_cores,
            "sides": {name: _side_dict(side) for name, side in self.sides.items()},
            "warnings": list(self.warnings),
        }


def _side_dict(side: Side) -> dict[str, Any]:
    def work(step: Step) -> dict[str, Any]:
        return {
            "forward": asdict(step.forward),
            "backward": asdict(step.backward),
            "recompute": step.recompute,
            "without_checkpointing": step.total(checkpointing=False),
            "with_checkpointing": step.total(checkpointing=True),
        }

    pairs = ("without_checkpointing", "with_checkpointing")
    return {
        "parameters": [asdict(part) for part in side.parts],
        "flops": work(side.step),
        "plain_flops": work(side.plain),
        "memory": {
            way: {name: memory.to_dict() for name, memory in zip(pairs, both, strict=True)}
            for way, both in side.memory.items()
        },
        "strategy": side.strategy,
        "checkpointing": side.checkpointing,
        "largest_micro_batch": side.largest_micro_batch,
        "samples_per_second": side.samples_per_second,
        "plain_samples_per_second": dict(zip(pairs, side.plain_samples_per_second, strict=True)),
        "hours": side.hours,
        "plain_hours": None if side.plain_hours is None else dict(zip(pairs, side.plain_hours, strict=True)),
    }


def make_plan(
    config: TrainConfig,
    *,
    hardware: Hardware | None = None,
    samples: int | None = None,
    tokens: int | None = None,
    supervised: int | None = None,
) -> Plan:
    """Plan a run.

    Args:
        config: the experiment.
        hardware: default: eight GPUs of 80 GB and 798 TFLOP/s, 40 % of which is used.
        samples: of one pass over the data, where its files do not tell.
        tokens: text tokens of a row; default `TOKENS` of the stage.
        supervised: positions of a row with a loss; default all, which is the most there can be.

    Raises:
        InputError: a number that is not positive, or more supervised tokens than there are.
        ModelNotFound, UnsupportedModel, CheckpointError, ConfigError: parts that are not found, or do not fit.
    """
    from .advice import advise

    hardware = hardware or Hardware()
    tokens = TOKENS[config.stage] if tokens is None else tokens
    supervised = tokens if supervised is None else supervised
    _check(hardware, samples=samples, tokens=tokens, supervised=supervised)
    model = model_config(config)
    shapes, learning = shapes_of(model), learning_of(config)
    micro_batch, accumulation = shares(config, hardware.gpus)
    rows = Rows(tokens, supervised, config.data.questions_per_image)
    amount, counts = amount_of(config, samples)
    sides: dict[Paradigm, Side] = {
        paradigm: _side(config, hardware, model, shapes, rows, micro_batch, amount, paradigm) for paradigm in PARADIGMS
    }
    seeing = 1 - amount.without_image / amount.samples if amount.samples else 1.0
    rate = sides[config.paradigm].samples_per_second * hardware.gpus
    plan = Plan(
        config=config,
        hardware=hardware,
        shapes=shapes,
        learning=learning,
        rows=rows,
        micro_batch=micro_batch,
        accumulation=accumulation,
        amount=amount,
        sides=sides,
        images_per_second=rate * seeing,
    )
    return replace(plan, warnings=advise(plan, counts))


def needs_checkpointing(
    config: TrainConfig,
    *,
    memory_bytes: int,
    micro_batch: int,
    tokens: int,
    world: int = 1,
    strategy: str | None = None,
    device: str = "cuda",
    model: VLoRAConfig | None = None,
) -> bool:
    """Whether a step without gradient checkpointing is too large for a device. Cheap: shapes only.

    Args:
        config: the experiment.
        memory_bytes: of the device.
        micro_batch: images at a time on it.
        tokens: text tokens of a row; the longest that occur, to be safe.
        world: devices that share the work.
        strategy: `ddp`, `fsdp` or `zero2`; None takes what the config says, and for `auto` fsdp where the whole
            language model learns on several devices, else ddp.
        device: `cuda` or `cpu`, for the precision.
        model: the configuration of the loaded model; None finds it by the names in the config.
    """
    rows = Rows(tokens, tokens, config.data.questions_per_image)
    shapes, learning = shapes_of(model or model_config(config)), learning_of(config)
    peak = step_memory(
        shapes,
        _with_visual(rows, shapes, config.paradigm),
        learning,
        micro_batch=micro_batch,
        checkpointing=False,
        strategy=strategy or config.train.sharing(world),
        devices=world,
        precision=precision_of(config, device=device),
    )
    return peak.total > HEADROOM * memory_bytes


def shares(config: TrainConfig, gpus: int) -> tuple[int, int]:
    """Images at a time on a GPU, and how many such micro-batches a step has."""
    per_gpu = math.ceil(config.train.images_per_step / gpus)
    accumulation = math.ceil(per_gpu / (config.train.images_per_device or per_gpu))
    return math.ceil(per_gpu / accumulation), accumulation


def _check(hardware: Hardware, *, samples: int | None, tokens: int, supervised: int) -> None:
    values = {
        "gpus": hardware.gpus,
        "gpu_memory": hardware.gpu_memory,
        "gpu_tflops": hardware.gpu_flops,
        "utilisation": hardware.utilisation,
        "samples": samples,
        "tokens": tokens,
        "supervised": supervised,
    }
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}; it must be above 0.")
    if hardware.utilisation > 1:
        raise InputError(f"utilisation is {hardware.utilisation}; it is a share of the peak: give 1 at most.")
    if supervised > tokens:
        raise InputError(f"supervised is {supervised}, of {tokens} tokens: give no more than there are.")


def _with_visual(rows: Rows, shapes: Shapes, paradigm: Paradigm) -> Rows:
    visual = shapes.encoder.features if paradigm == "visual-tokens" else 0
    return Rows(rows.tokens, rows.supervised, rows.questions, visual)


def _side(
    config: TrainConfig,
    hardware: Hardware,
    model: VLoRAConfig,
    shapes: Shapes,
    rows: Rows,
    micro_batch: int,
    amount: Amount,
    paradigm: Paradigm,
) -> Side:
    rows, learning = _with_visual(rows, shapes, paradigm), learning_of(config)

    def peak(strategy: str, checkpointing: bool, images: int = micro_batch) -> Memory:
        return step_memory(
            shapes,
            rows,
            learning,
            micro_batch=images,
            checkpointing=checkpointing,
            strategy=strategy,
            devices=hardware.gpus,
            precision=precision_of(config),
        )

    memory = {way: (peak(way, False), peak(way, True)) for way in STRATEGIES}
    budget = HEADROOM * hardware.gpu_memory
    strategy, checkpointing = _choose(config, memory, budget=budget, gpus=hardware.gpus)
    together = rows.packed if config.model.attention in KERNELS else rows
    step, plain = step_work(shapes, together, learning), plain_work(shapes, rows, learning)
    speed = hardware.gpu_flops * hardware.utilisation

    def hours(rate: float) -> float | None:
        return None if amount.seen is None else amount.seen / (rate * hardware.gpus) / 3600

    rate = speed / step.total(checkpointing=checkpointing)
    usual = (speed / plain.total(checkpointing=False), speed / plain.total(checkpointing=True))
    spent = (hours(usual[0]), hours(usual[1]))
    return Side(
        parts=meta_parts(config, model, paradigm=paradigm),
        step=step,
        plain=plain,
        memory=memory,
        strategy=strategy,
        checkpointing=checkpointing,
        largest_micro_batch=_largest(lambda images: peak(strategy, checkpointing, images).total <= budget),
        samples_per_second=rate,
        plain_samples_per_second=usual,
        hours=hours(rate),
        plain_hours=None if spent[0] is None or spent[1] is None else (spent[0], spent[1]),
    )


def _choose(
    config: TrainConfig, memory: dict[str, tuple[Memory, Memory]], *, budget: float, gpus: int
) -> tuple[str, bool]:
    """What the config says; for `auto` the trainer's way, with recomputation only if memory asks for it."""
    train = config.train
    strategy = train.sharing(gpus)
    if train.gradient_checkpointing != "auto":
        return strategy, train.gradient_checkpointing == "on"
    return strategy, memory[strategy][False].total > budget


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, 0 if none does."""
    high = 1
    while fits(high) and high < 1 << 20:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
