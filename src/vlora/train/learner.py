"""What is trained: a model of either paradigm, which of its parts learn, and what is left when it is done.

    config ─ parts ─► assembled, or a checkpoint ─► frozen but for what `train` names ─► Learner

The frozen language model is kept in the precision that is fastest here; what learns stays in float32.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..compare.baseline import build_baseline, expand_images, save_baseline
from ..errors import MissingDependency
from ..loading import language_model_and_tokenizer, load
from ..model import GeneratorConfig, VLoRAProcessor
from ..model.assemble import (
    PARTS_FILE,
    Parts,
    assemble,
    load_image_processor,
    load_vision_tower,
    parts_of,
    read_parts,
    save_generator,
)
from ..model.inject import MODULE_OF
from .config import LoraSection, TrainConfig, TrainSection
from .looks import Collator, Places
from .norms import fuse_norms
from .sizes import nano_encoder

# What of a generator writes into the language model, and has a rate of its own.
OUTPUT = ("b.", "static_a.", "scales")
# What of it is vectors, one below another, and no matrix that maps.
VECTORS = ("queries", "positions", "scales")


@dataclass
class Learner:
    """A model that learns.

    Args:
        model: of either paradigm.
        processor: its.
        config: of the run.
        parts: where a VLoRA model's frozen parts come from; None for the baseline.
    """

    model: Any
    processor: Any
    config: TrainConfig
    parts: Parts | None

    @property
    def bridge(self) -> nn.Module:
        """What leads from the image to the language model: the generator, or the projector."""
        return self.model.model.generator if self.parts else self.model.model.multi_modal_projector

    @property
    def language_model(self) -> nn.Module:
        """The decoder without its head."""
        return self.model.model.language_model

    @property
    def vision(self) -> nn.Module:
        """The vision encoder."""
        return self.model.model.vision_tower

    def groups(self, section: TrainSection) -> list[dict[str, Any]]:
        """Parameter groups: a rate for each part; matrices with weight decay, the rest without.

        With Muon each says whether its steps are `orthogonal`: matrices that map have such, tables of embeddings not.
        """
        muon = section.optimizer == "muon"
        groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
        seen: set[nn.Parameter] = set()
        tables = {module.weight for module in self.model.modules() if isinstance(module, nn.Embedding)}
        tables.add(self.model.get_output_embeddings().weight)
        for name, part in (("bridge", self.bridge), ("vision", self.vision), ("language_model", self.model)):
            for path, parameter in part.named_parameters():
                if parameter.requires_grad and parameter not in seen:
                    seen.add(parameter)
                    key = (
                        _rate(name, path, section),
                        _decays(name, path, parameter),
                        muon and parameter not in tables and _maps(name, path, parameter),
                    )
                    groups.setdefault(key, []).append(parameter)
        return [
            {
                "params": members,
                "lr": rate,
                "weight_decay": section.weight_decay if decays else 0.0,
                **({"orthogonal": orthogonal} if muon else {}),
            }
            for (rate, decays, orthogonal), members in groups.items()
        ]

    def blocks(self) -> list[str]:
        """Class names of the blocks of the language model, which are sharded one by one."""
        return sorted({type(block).__name__ for block in self.language_model.layers})  # type: ignore[union-attr]

    def collator(self) -> Collator:
        """Makes micro-batches."""
        return Collator(self.processor.tokenizer.pad_token_id)

    def places(self) -> Places | None:
        """What gives an image its visual tokens in a text; None where it has none."""
        if self.parts:
            return None
        config = self.model.config
        count = config.image_seq_length
        return Places(partial(expand_images, image_token_id=config.image_token_id, tokens_per_image=count), count)

    def checkpoint_gradients(self) -> None:
        """Compute activations anew in the backward pass instead of keeping them."""
        # Later versions of transformers prefer another name.
        enable = getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)
        enable(**{f"{enable.__name__.removesuffix('_enable')}_kwargs": {"use_reentrant": False}})
        # It makes the embeddings need a gradient, as the re-entrant form must have it; the backward pass would then
        # go through every block, worn or not.
        self.model.disable_input_require_grads()

    def finish(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Write the final model: the generator alone if nothing else has learnt, else all of it.

        Args:
            folder: made if need be.
            state: the whole model's tensors, where its own are spread over processes.
        """
        train = self.config.train
        dtype = getattr(torch, train.stored_dtype)
        if state is not None:
            self._gather(state)
        if train.language_model == "lora":
            _merge_lora(self.language_model)
        if self.parts and train.language_model == "frozen" and train.vision == "frozen":
            save_generator(folder, self.model, self.processor, self.parts, dtype=dtype)
        elif self.parts is None:
            save_baseline(folder, model=self.model, processor=self.processor, dtype=dtype)
        else:
            self.model.to(dtype).save_pretrained(folder)
            self.processor.save_pretrained(folder)

    def _gather(self, state: dict[str, Tensor]) -> None:
        """Put a model that is whole in the place of one that is spread over processes."""
        generation = self.model.generation_config
        with torch.device("meta"):
            whole = type(self.model)(self.model.config)
        self.model = whole
        if self.config.train.language_model == "lora":
            _add_lora(self.language_model, self.config.train)
        whole.load_state_dict(state, strict=False, assign=True)
        whole.tie_weights()
        whole.generation_config = generation


def _rate(part: str, path: str, section: TrainSection) -> float:
    if part == "bridge":
        return section.learning_rate * (section.output_rate if path.startswith(OUTPUT) else 1.0)
    own = section.vision_rate if part == "vision" else section.language_model_rate
    return section.learning_rate if own is None else own


def _decays(part: str, path: str, parameter: nn.Parameter) -> bool:
    written = part == "bridge" and (path.startswith(OUTPUT) or path.endswith(VECTORS))
    return parameter.ndim >= 2 and not written


def _maps(part: str, path: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and not (part == "bridge" and path.endswith(VECTORS))


def build(config: TrainConfig, device: torch.device) -> Learner:
    """The learner of a config, on its device and in its precisions.

    Raises:
        VLoRAError: parts that cannot be loaded, or that do not fit.
    """
    if config.paradigm == "visual-tokens":
        learner = _baseline(config)
    else:
        learner = _from_checkpoint(config) if config.model.checkpoint else _from_parts(config)
    _choose(learner, config.train)
    _set_precision(learner, device)
    learner.model.to(device)
    return learner


def _baseline(config: TrainConfig) -> Learner:
    section = config.model
    causal_lm, tokenizer = language_model_and_tokenizer(section.language_model)
    tower, image_processor = _vision(config)
    model, processor = build_baseline(
        causal_lm=causal_lm,
        vision_tower=tower,
        image_processor=image_processor,
        tokenizer=tokenizer,
        feature_layer=section.vision_feature_layer,
        select=section.vision_feature_select_strategy,
        chat_template=section.chat_template,
    )
    return Learner(model, processor, config, parts=None)


def _from_checkpoint(config: TrainConfig) -> Learner:
    """A VLoRA checkpoint, such as stage one leaves; the config's other parts are not read."""
    folder = Path(config.model.checkpoint or "")
    eyes = load(folder, device="cpu")
    if config.model.chat_template:
        eyes.processor.chat_template = config.model.chat_template
    parts = (
        read_parts(folder)
        if (folder / PARTS_FILE).is_file()
        else parts_of(eyes.model, language_model=str(folder), vision=str(folder))
    )
    return Learner(eyes.model, eyes.processor, config, parts)


def _from_parts(config: TrainConfig) -> Learner:
    section = config.model
    causal_lm, tokenizer = language_model_and_tokenizer(section.language_model)
    tower, image_processor = _vision(config)
    model: Any = assemble(
        causal_lm=causal_lm,
        vision_tower=tower,
        generator=GeneratorConfig(**section.generator),
        vision_feature_layer=section.vision_feature_layer,
        vision_feature_select_strategy=section.vision_feature_select_strategy,
        views=section.views,
    )
    processor = VLoRAProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=section.chat_template or tokenizer.chat_template,
        image_token=model.config.image_token,
    )
    parts = parts_of(model, language_model=section.language_model, vision=section.vision)
    return Learner(model, processor, config, parts)


def _vision(config: TrainConfig) -> tuple[Any, Any]:
    section = config.model
    if section.vision != "nano":
        return load_vision_tower(section.vision), load_image_processor(section.vision)
    from ..model.efficientnet_lite import image_processor
    from ..nano.vision import load_encoder

    options = nano_encoder(section)
    return load_encoder(options), image_processor(options.image_size)


def _choose(learner: Learner, train: TrainSection) -> None:
    """Freeze everything but what learns."""
    learner.model.requires_grad_(False)
    learner.bridge.requires_grad_(train.generator == "trained")
    learner.vision.requires_grad_(train.vision == "trained")
    if train.language_model == "full":
        learner.language_model.requires_grad_(True)
        learner.model.get_output_embeddings().requires_grad_(True)
    elif train.language_model == "lora":
        _add_lora(learner.language_model, train)


def _add_lora(language_model: nn.Module, train: TrainSection) -> None:
    """LoRA layers beside the linear ones, which keep their place and their hooks inside of them."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependency(
            "train.language_model is lora, which needs peft: run `pip install peft`, or choose full or frozen."
        ) from error
    section = train.lora
    wanted = LoraConfig(
        r=section.rank,
        lora_alpha=int(section.alpha) if section.alpha == int(section.alpha) else section.alpha,  # type: ignore[arg-type]
        lora_dropout=section.dropout,
        target_modules=_adapted(section),
    )
    inject_adapter_in_model(wanted, language_model)


def _adapted(section: LoraSection) -> list[str]:
    """Linear layers that get LoRA: by the end of their names, or by all of it where blocks are chosen."""
    modules = [MODULE_OF[target] for target in section.targets]
    if section.layers is None:
        return [module.rsplit(".", 1)[1] for module in modules]
    return [f"layers.{layer}.{module}" for layer in section.layers for module in modules]


def _merge_lora(language_model: nn.Module) -> None:
    """Add each LoRA update to its linear layer, and put the layer back in its place."""
    from peft.tuners.lora import LoraLayer

    for path, layer in list(language_model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()  # type: ignore[operator]
            owner, _, name = path.rpartition(".")
            setattr(language_model.get_submodule(owner), name, layer.base_layer)


def _set_precision(learner: Learner, device: torch.device) -> None:
    """What is frozen in the fastest precision, what learns in float32."""
    section, train = learner.config.model, learner.config.train
    learner.language_model.set_attn_implementation(section.attention)  # type: ignore[operator]
    fuse_norms(learner.language_model)
    if train.language_model == "full":
        return
    dtype = frozen_precision(section.dtype, device)
    head = learner.model.get_output_embeddings()
    for parameter in [*learner.language_model.parameters(), *head.parameters()]:
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
    if train.vision == "frozen" and device.type != "cpu":
        learner.vision.to(dtype)


def frozen_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The precision of a frozen language model: as asked, or the faster one.

    On a GPU bfloat16. On a CPU it depends on its instructions, so a measurement decides.
    """
    if wanted != "auto":
        return getattr(torch, wanted)
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
        if sum(times) > 0.1:  # a CPU without units for it takes a second, and is told by the first
            break
    return min(times)
