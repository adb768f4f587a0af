"""The plain reference: VLoRA from its formulas, trained the way its authors' code does.

    y = x W + scale · (x A) B        one einsum for each factor of each linear layer, A per row

What it does not do is what ours does: batches come at random and are padded to their longest text; every row perceives
its own image; logits are computed at every position and in float32; the blocks are recomputed in the backward pass
(gradient checkpointing), and since the embeddings are made to require a gradient for it, the backward pass goes down
through all blocks; attention is the plain kernel.

What both share, so that the same work is compared: the generator's modules, the precision of the frozen language model
and of the low-rank path, the optimiser, and the weighting of the loss (the mean over rows of the mean over a row's
supervised tokens; the authors' own is the mean over all supervised tokens of a batch, which costs the same).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import set_checkpoint_early_stop

from vlora.model.inject import MODULE_OF
from vlora.model.modeling import VLoRAForConditionalGeneration
from vlora.model.weights import Place

IGNORED = -100


class Linear(nn.Module):
    """A linear layer (or the MLP) with a low-rank update of each row beside it.

    Args:
        base: what it is beside.
        scale: of the update.
    """

    def __init__(self, base: nn.Module, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.factors: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[row, text, in_dim]` -> `[row, text, out_dim]`."""
        y = self.base(x)
        if self.factors is None:
            return y
        a, b = self.factors
        read = torch.einsum("nti,ir->ntr" if a.ndim == 2 else "nti,nir->ntr", x.to(a.dtype), a)
        written = torch.einsum("ntr,ro->nto" if b.ndim == 2 else "ntr,nro->nto", read, b)
        return y + (self.scale * written).to(y.dtype)


class Recipe(nn.Module):
    """The reference. Takes a model of ours apart: its hooks are removed, its generator is used as it is.

    Args:
        model: is changed; only its modules are used.
        checkpointing: recompute the blocks in the backward pass.
    """

    def __init__(self, model: VLoRAForConditionalGeneration, *, checkpointing: bool = True) -> None:
        super().__init__()
        model.model.wearer.remove()
        self.model = model
        self.layout = model.model.generator.layout
        language_model = model.model.language_model
        self.linears = {place: self._beside(language_model, place) for place in self.layout.places}
        language_model.set_attn_implementation("eager")
        if checkpointing:
            recompute(language_model)
            language_model.enable_input_require_grads()

    def _beside(self, language_model: nn.Module, place: Place) -> Linear:
        owner, _, name = f"layers.{place.layer}.{MODULE_OF[place.target]}".rpartition(".")
        block = language_model.get_submodule(owner)
        linear = Linear(block.get_submodule(name), self.layout.scale)
        setattr(block, name, linear)
        return linear

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The loss of `input_ids`, `attention_mask`, `labels` `[row, text]` and `pixel_values`, an image a row."""
        body = self.model.model
        generator, codes = body.generator, body.perceive(batch["pixel_values"]).values
        made = {self.layout.shared: generator.shared_factors()}
        made |= {factor: generator._factors(factor, codes) for factor in self.layout.factors}
        for place, linear in self.linears.items():
            linear.factors = made["a"][place[:2]], made["b"][place[:2]]
        # All of a block is run again, as checkpoints of the authors' day do; torch's newer ones stop where they can.
        with set_checkpoint_early_stop(False):
            hidden = body.language_model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).last_hidden_state
        return everywhere(self.model.lm_head, hidden, batch["labels"], batch["loss_weights"])


def recompute(language_model: Any, *, wanted: bool = True) -> None:
    """Gradient checkpointing of every block, on or off, by whichever name this transformers has for it."""
    name = "activation" if hasattr(language_model, "activation_checkpointing_enable") else "gradient"
    if wanted:
        enable = getattr(language_model, f"{name}_checkpointing_enable")
        enable(**{f"{name}_checkpointing_kwargs": {"use_reentrant": False}})
    else:
        getattr(language_model, f"{name}_checkpointing_disable")()


def everywhere(head: nn.Module, hidden: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The loss from logits at every position, in float32.

    Args:
        head: of the language model.
        hidden: `[row, text, hidden]`.
        labels: `[row, text]`.
        weights: `[row]`, what the mean over each row counts.
    """
    logits = head(hidden).float()[:, :-1]
    targets = labels[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    supervised = targets.ne(IGNORED).sum(1).clamp_min(1)
    return (losses.view_as(targets).sum(1) / supervised * weights).sum()
