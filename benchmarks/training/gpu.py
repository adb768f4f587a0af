"""Stage one at the 7B shape on one GPU: Vicuna-7B and CLIP-L/14-336 with random weights, the authors' generator.

The language model and the encoder are frozen in bfloat16, the generator learns in float32 under autocast, as
`vlora train` has it. Captions of one length, all of them but the prompt's one token supervised; images lie on the GPU,
so that loading is not measured. FLOPs are those that our step needs, by the formulas of `vlora.cost`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from vlora.cost.known import ENCODERS, LANGUAGE_MODELS
from vlora.model import GeneratorConfig, VLoRAForConditionalGeneration
from vlora.model.assemble import assemble

from .counts import Counter, Size
from .recipe import Recipe

SHAPE = (LANGUAGE_MODELS["vicuna-7b"], ENCODERS["clip-vit-l-14-336"])


@dataclass(frozen=True)
class Job:
    """What is trained.

    Args:
        model: random, all but the generator frozen.
        batch: of captions.
        device: of both.
    """

    model: VLoRAForConditionalGeneration
    batch: dict[str, Tensor]
    device: torch.device

    def step(self, loss: Callable[[dict[str, Tensor]], Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Forward, backward, clip, update."""
        with torch.autocast(self.device.type, torch.bfloat16):
            value = loss(self.batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.model.model.generator.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def ours(self, batch: dict[str, Tensor]) -> Tensor:
        """As the trainer computes it."""
        return self.model(**batch, supervised_only=True, use_cache=False).loss


def measure(*, batch: int, text_tokens: int, peak: float, steps: int) -> dict[str, Any]:
    """Ours and the recipe on the GPU, one after the other on the same model.

    Args:
        batch: images of a step.
        text_tokens: of a caption.
        peak: dense bfloat16 TFLOP/s of the GPU.
        steps: that are timed, of each.

    Raises:
        SystemExit: no GPU.
    """
    if not torch.cuda.is_available():
        raise SystemExit("--shape 7b needs a CUDA GPU, and torch sees none here: leave --shape out for the nano shape.")
    device = torch.device("cuda")
    job = build(*SHAPE, GeneratorConfig(), batch=batch, text_tokens=text_tokens, device=device)
    optimizer = torch.optim.AdamW(job.model.model.generator.parameters(), lr=5e-5, fused=True)
    counter, size = Counter.of(job.model.config), Size.of(job.batch)
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "shape": "vicuna-7b, clip-vit-l-14-336, dim 512, rank 64",
        "batch": batch,
        "text_tokens": text_tokens,
        "peak_teraflops": peak,
        "needed_teraflops_per_sample": round(counter.ours(size) / batch / 1e12, 3),
        "ours": _timed(job, job.ours, optimizer, steps=steps, flops=counter.ours(size), peak=peak),
    }
    # Taken apart last: afterwards the model is the recipe's.
    reference = Recipe(job.model).train()
    try:
        result["recipe"] = _timed(job, reference, optimizer, steps=steps, flops=counter.recipe(size), peak=peak)
        result["faster_than_recipe"] = round(
            result["ours"]["samples_per_second"] / result["recipe"]["samples_per_second"], 2
        )
    except torch.OutOfMemoryError:
        result["recipe"] = f"does not fit with {batch} images a step"
    return result


def build(
    llm: dict[str, Any],
    vision: dict[str, Any],
    generator: GeneratorConfig,
    *,
    batch: int,
    text_tokens: int,
    device: torch.device,
) -> Job:
    """A model of this shape with random weights, made where it will be, and a batch for it.

    Args:
        llm: fields of the language model's config, `model_type` among them.
        vision: of the encoder's.
        generator: the generator's.
        batch: images, with a caption each.
        text_tokens: of each caption.
        device: of all of it.
    """
    text_config, vision_config = (AutoConfig.for_model(**fields) for fields in (llm, vision))
    torch.manual_seed(0)
    with device:
        causal_lm = AutoModelForCausalLM.from_config(text_config, dtype=torch.bfloat16)
        tower = AutoModel.from_config(vision_config, dtype=torch.bfloat16)
        model = assemble(causal_lm=causal_lm, vision_tower=tower, generator=generator).to(device).train()
        model.requires_grad_(False)
        model.model.generator.float().requires_grad_(True)
        side = vision_config.image_size
        ids = torch.randint(3, text_config.vocab_size, (batch, text_tokens))
        labels = ids.clone()
        labels[:, 0] = -100
        tensors = {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(batch, 3, side, side, dtype=torch.bfloat16),
            "loss_weights": torch.full((batch,), 1 / batch),
        }
    return Job(model, tensors, device)


def _timed(
    job: Job, loss: Callable[[dict[str, Tensor]], Tensor], optimizer: torch.optim.Optimizer, **sizes: Any
) -> dict[str, float]:
    for _ in range(3):
        job.step(loss, optimizer)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(sizes["steps"]):
        job.step(loss, optimizer)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / sizes["steps"]
    return {
        "samples_per_second": round(len(job.batch["input_ids"]) / seconds, 1),
        "milliseconds_per_step": round(seconds * 1000, 1),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "computed_teraflops_per_step": round(sizes["flops"] / 1e12, 1),
        "share_of_peak": round(sizes["flops"] / seconds / (sizes["peak"] * 1e12), 3),
    }


def told(report: dict[str, Any]) -> str:
    """Lines for people."""
    lines = [
        f"{report['gpu']}, {report['shape']}: {report['batch']} images a step, {report['text_tokens']} tokens each"
    ]
    for name in ("ours", "recipe"):
        row = report[name]
        lines.append(
            f"  {name:>8}: {row}"
            if isinstance(row, str)
            else f"  {name:>8}: {row['samples_per_second']:.0f} samples/s, {row['peak_memory_gb']} GB, "
            f"{row['share_of_peak']:.1%} of {report['peak_teraflops']:g} TFLOP/s"
        )
    return "\n".join(lines)
