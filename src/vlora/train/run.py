"""A training run: from a config to a generator-only checkpoint, in a folder that says how it was made.

runs/nano/
  config.yaml          the resolved config
  environment.json     versions and device
  metrics.jsonl        a line per log step
  checkpoint-N/        generator, optimiser, schedule, random numbers
  final/               the generator-only checkpoint; `vlora ask --model runs/nano/final`
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .. import __version__
from ..errors import InputError, VLoRAError
from ..loading import language_model_and_tokenizer
from ..model import GeneratorConfig, VLoRAForConditionalGeneration, VLoRAProcessor, register
from ..model.assemble import assemble, load_image_processor, load_vision_tower, parts_of, save_generator
from .config import TrainConfig
from .looks import Collator, Looks, plan
from .trainer import GeneratorTrainer, Progress, Tell, last_checkpoint

# Fields that may differ between a run and its resumption.
FREE = (
    "train.steps",
    "train.decay_steps",
    "train.log_steps",
    "train.save_steps",
    "train.keep_checkpoints",
    "train.device",
    "train.stored_dtype",
)


def train(
    config: TrainConfig,
    *,
    run_dir: str | Path | None = None,
    resume: str = "none",
    report: Callable[[Progress], None] | None = None,
) -> Path:
    """Train a generator.

    Args:
        config: the experiment.
        run_dir: default `runs/NAME`.
        resume: `none` starts afresh, `auto` goes on from the last whole checkpoint if there is one, and a path from
            that checkpoint.
        report: told how far it is.

    Returns:
        The folder of the final checkpoint.

    Raises:
        InputError: a run folder in use, a checkpoint that does not exist or is of another config.
    """
    register()
    folder = Path(run_dir or Path("runs") / config.name)
    checkpoint = _checkpoint(folder, resume)
    _prepare(folder, config, resuming=checkpoint is not None)
    set_seed(config.train.seed)
    device = _device(config)
    model, processor = build(config, device)
    _write_environment(folder, device, model)
    looks = plan(
        images=config.train.steps * config.train.images_per_step,
        per_image=config.data.questions_per_image,
        seed=config.train.seed,
        limit_images=config.data.limit_images,
    )
    trainer = GeneratorTrainer(
        model=model,
        args=_arguments(config, folder, device),
        train_dataset=Looks(looks, processor, augment=config.data.augment),
        data_collator=Collator(processor.tokenizer.pad_token_id),
        output_rate=config.train.output_rate,
        callbacks=[
            Tell(
                folder / "metrics.jsonl",
                images=config.train.images_per_step,
                questions=config.data.questions_per_image,
                report=report,
            )
        ],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _finish(folder, config, model, processor)


def build(config: TrainConfig, device: torch.device) -> tuple[VLoRAForConditionalGeneration, VLoRAProcessor]:
    """The model of a config: frozen parts, fresh generator, everything in its precision."""
    section = config.model
    causal_lm, tokenizer = language_model_and_tokenizer(section.language_model)
    tower, image_processor = _vision(config)
    model: Any = assemble(
        causal_lm=causal_lm,
        vision_tower=tower,
        generator=GeneratorConfig(**section.generator),
        vision_feature_layer=section.vision_feature_layer,
        vision_feature_select_strategy=section.vision_feature_select_strategy,
    )
    processor = VLoRAProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=section.chat_template or tokenizer.chat_template,
        image_token=model.config.image_token,
    )
    model.requires_grad_(False)
    model.model.generator.requires_grad_(True)
    model.model.language_model.set_attn_implementation(section.attention)
    dtype = worn_precision(config, device)
    model.model.language_model.to(dtype)
    model.lm_head.to(dtype)
    return model.to(device), processor


def _vision(config: TrainConfig) -> tuple[Any, Any]:
    section = config.model
    if section.vision != "nano":
        return load_vision_tower(section.vision), load_image_processor(section.vision)
    from ..model.efficientnet_lite import EfficientNetLiteConfig, image_processor
    from ..nano.vision import load_encoder

    try:
        options = EfficientNetLiteConfig(**section.vision_options)
    except Exception as error:  # the strict configs of transformers raise several kinds
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"model.vision_options {section.vision_options} cannot be used: {reason}") from error
    return load_encoder(options), image_processor(options.image_size)


def worn_precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The precision of the frozen language model: as asked, or the faster one.

    On a GPU bfloat16. On a CPU it depends on its instructions, so a measurement decides.
    """
    if config.model.dtype != "auto":
        return getattr(torch, config.model.dtype)
    if device.type != "cpu":
        return torch.bfloat16
    return min((torch.float32, torch.bfloat16), key=_matmul_seconds)


def _matmul_seconds(dtype: torch.dtype) -> float:
    a, b = torch.ones(512, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
    times: list[float] = []
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - began)
    return min(times)


def _arguments(config: TrainConfig, folder: Path, device: torch.device) -> TrainingArguments:
    section = config.train
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=section.steps,
        per_device_train_batch_size=section.images_per_step,
        learning_rate=section.learning_rate,
        weight_decay=section.weight_decay,
        warmup_steps=section.warmup_steps,
        # Constant, then down: a run can be made longer or shorter while it is under way (`train.steps` is free).
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": min(section.decay_steps, section.steps - section.warmup_steps)},
        max_grad_norm=section.max_grad_norm,
        seed=section.seed,
        logging_steps=section.log_steps,
        save_steps=section.save_steps,
        # The last whole checkpoint must outlive the writing of the next one.
        save_total_limit=max(2, section.keep_checkpoints),
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cache=True,  # the Trainer writes it into the config, which is saved; the training step itself uses none
        report_to=[],
        use_cpu=device.type == "cpu",
    )


def _device(config: TrainConfig) -> torch.device:
    wanted = config.train.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device is cuda, but torch sees no GPU here: use cpu or auto.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _checkpoint(folder: Path, resume: str) -> Path | None:
    if resume == "none":
        if any(folder.glob("checkpoint-*")) or (folder / "final").exists():
            raise InputError(
                f"The run folder {folder} holds a run: go on with --resume auto, or give another --run-dir."
            )
        return None
    if resume == "auto":
        return last_checkpoint(folder)
    path = Path(resume)
    if not path.is_dir():
        raise InputError(f"There is no checkpoint {resume!r}: give auto, none, or a folder checkpoint-N.")
    return path


def _prepare(folder: Path, config: TrainConfig, *, resuming: bool) -> None:
    path = folder / "config.yaml"
    wanted = config.model_dump()
    if resuming and path.is_file():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = [f for f in _differences(before, wanted) if f not in FREE]
        if changed:
            raise InputError(
                f"The run in {folder} was begun with another config (different: {', '.join(changed)}): "
                "restore those fields, or give another --run-dir."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(wanted, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise VLoRAError(
            f"The run folder {folder} cannot be written ({error.strerror}): give another --run-dir."
        ) from error


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [d for k in keys for d in _differences(before.get(k), after.get(k), f"{path}.{k}" if path else str(k))]
    return [] if before == after else [path]


def _write_environment(folder: Path, device: torch.device, model: VLoRAForConditionalGeneration) -> None:
    record = {
        "vlora": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "language_model_dtype": str(next(model.model.language_model.parameters()).dtype),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    (folder / "environment.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _finish(folder: Path, config: TrainConfig, model: VLoRAForConditionalGeneration, processor: VLoRAProcessor) -> Path:
    final = folder / "final"
    parts = parts_of(model, language_model=config.model.language_model, vision=config.model.vision)
    save_generator(final, model, processor, parts, dtype=getattr(torch, config.train.stored_dtype))
    return final
