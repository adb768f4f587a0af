"""What a run makes of the machine it is on: device, precision, and how several processes share the work."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, MissingDependency
from .config import TrainConfig
from .plan import needs_checkpointing


def rank() -> int:
    """The number of this process among all."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def part() -> None:
    """End what joins the processes, before they do: its threads can abort a process that ends with them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def device_of(config: TrainConfig) -> torch.device:
    """The device of this process.

    Raises:
        InputError: a GPU is asked for, and there is none.
    """
    wanted = config.train.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device is cuda, but torch sees no GPU here: use cpu or auto.")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def parallelism(config: TrainConfig) -> str:
    """How processes share the work: `one`, `ddp`, `fsdp` or `zero2`.

    Raises:
        MissingDependency: DeepSpeed is asked for, and not installed.
    """
    if config.train.parallel == "zero2" and importlib.util.find_spec("deepspeed") is None:
        raise MissingDependency(
            "train.parallel is zero2, which needs DeepSpeed: run `pip install deepspeed`, or use fsdp."
        )
    return "one" if processes() == 1 else config.train.sharing(processes())


def check_reporters(config: TrainConfig, folder: Path) -> None:
    """See that those who are told of a run are there, and keep what they write in its folder.

    Raises:
        MissingDependency: one is not installed.
    """
    for name in config.train.report_to:
        if importlib.util.find_spec(name) is None:
            raise MissingDependency(
                f"train.report_to names {name}, which is not installed: run `pip install {name}`, or leave it out; "
                "metrics.jsonl is written in any case."
            )
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    for variable in ("TRACKIO_PROJECT", "WANDB_PROJECT"):
        os.environ.setdefault(variable, "vlora")


def recomputes(config: TrainConfig, device: torch.device, *, micro_batch: int, tokens: int, model: Any = None) -> bool:
    """Whether to checkpoint gradients: as asked, or where a step would not fit into the GPU without.

    Args:
        config: of the run.
        device: of this process.
        micro_batch: looks of a process at a time.
        tokens: of the longest texts.
        model: configuration of the loaded VLoRA model; None finds it by the names in the config.
    """
    wanted = config.train.gradient_checkpointing
    if wanted != "auto" or device.type != "cuda":
        return wanted == "on"
    memory = torch.cuda.get_device_properties(device).total_memory
    return needs_checkpointing(config, memory_bytes=memory, micro_batch=micro_batch, tokens=tokens, world=processes())


def trainer_options(config: TrainConfig, device: torch.device, blocks: list[str]) -> dict[str, Any]:
    """The Trainer's arguments that depend on the machine.

    Args:
        config: of the run.
        device: of this process.
        blocks: class names of the blocks that FSDP takes as units.
    """
    options: dict[str, Any] = {"use_cpu": device.type == "cpu", "bf16": device.type == "cuda"}
    if processes() > 1:
        options["ddp_backend"] = "gloo" if device.type == "cpu" else "nccl"
        # Every batch gives every parameter that learns a gradient, see `VLoRAModel._touch_unused`.
        options["ddp_find_unused_parameters"] = False
    way = parallelism(config)
    if way == "fsdp":
        options["fsdp"] = True
        options["fsdp_config"] = {"version": 2, "transformer_layer_cls_to_wrap": blocks}
    elif way == "zero2":
        options["deepspeed"] = {
            "zero_optimization": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True},
            "bf16": {"enabled": device.type == "cuda"},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        }
    return options
