"""A language model wears perceptual weights: y = base(x) + scale · (x A) B, for the length of one call.

How the weights reach the linear layers. They travel as a keyword argument, from the language model's `forward`
through its decoder blocks down to each block's attention module, as any argument of transformers does. There a
hook takes them out and lays them ready for the linears of that block:

    llm(..., perceptual_weights=w) ─► block(..., perceptual_weights=w) ─► self_attn(..., perceptual_weights=w)
                                                                          │ taken out, laid ready for this thread
                     q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, mlp: add their delta

Nothing is kept on the model between calls. Gradient checkpointing, which runs a block again in the backward pass,
passes the same arguments again and so finds the same weights; two threads each find their own. The base modules
keep their own `forward`, their names and their state-dict keys, so quantised layers, PEFT and sharding still work.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import UnsupportedModel
from .weights import PerceptualWeights, Place

# Families whose decoder blocks pass extra arguments on to `self_attn` and are named as below; each is under test.
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3")
MODULE_OF = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "mlp": "mlp",
}


def check_supported(model_type: str) -> None:
    """Refuse a language model that cannot wear weights.

    Raises:
        UnsupportedModel: names the given family and the supported ones.
    """
    if model_type not in SUPPORTED:
        raise UnsupportedModel(
            f"A language model of type {model_type!r} cannot wear perceptual weights; "
            f"choose one of these families: {', '.join(SUPPORTED)}."
        )


def find_places(language_model: nn.Module, targets: Sequence[str], layers: Sequence[int]) -> tuple[Place, ...]:
    """The shape of every ΔW, read off the real linears.

    Args:
        language_model: the decoder without its head (`LlamaModel`, ...).
        targets: names of targets.
        layers: decoder blocks, 0-based.

    Raises:
        UnsupportedModel: a block without the wanted linears.
    """
    check_supported(language_model.config.model_type)  # type: ignore[union-attr]
    return tuple(Place(layer, target, *_dims(language_model, layer, target)) for layer in layers for target in targets)


def _dims(language_model: nn.Module, layer: int, target: str) -> tuple[int, int]:
    if target == "mlp":  # from what the MLP reads to what it writes
        return _dims(language_model, layer, "gate")[0], _dims(language_model, layer, "down")[1]
    try:
        linear = language_model.get_submodule(f"layers.{layer}.{MODULE_OF[target]}")
        return int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]
    except AttributeError as error:
        raise UnsupportedModel(
            f"{type(language_model).__name__} has no linear layer {MODULE_OF[target]!r} in decoder block {layer}; "
            "leave that target or layer out."
        ) from error


def low_rank(x: Tensor, a: Tensor) -> Tensor:
    """x A with a factor per sample; and (x A) B, where B is one per sample too.

    Consecutive rows of `x` may share one sample's factor, so that many questions about one image read it once.

    Args:
        x: `[rows, text, in_dim]`.
        a: `[samples, in_dim, rank]`, rows a multiple of samples; or `[in_dim, rank]`, of all samples.

    Returns:
        `[rows, text, rank]`, in the precision of `a`.
    """
    if a.ndim == 2:
        return x.to(a.dtype) @ a
    rows, text = x.shape[:2]
    samples = a.shape[0]
    grouped = x.to(a.dtype).reshape(samples, rows // samples * text, -1)
    return torch.bmm(grouped, a).view(rows, text, -1)


@dataclass
class _Worn:
    """What one block wears during one call: its weights, and x A of every input read so far."""

    weights: PerceptualWeights
    read: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class _Block:
    """The hooks of one decoder block."""

    layer: int
    worn: dict[int, _Worn] = field(default_factory=dict)

    def take(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Before attention: take the weights out of the arguments and lay them ready for this thread."""
        weights: PerceptualWeights | None = kwargs.pop("perceptual_weights", None)
        if weights is None or self.layer not in weights.layout.sites_of:
            self.worn.pop(_thread(), None)
        else:
            self.worn[_thread()] = _Worn(weights)
        return args, kwargs

    def leave(self, _module: nn.Module, _args: tuple[Any, ...], _output: Tensor) -> None:
        """After the MLP, the last part of a block: keep nothing."""
        self.worn.pop(_thread(), None)

    def after(self, target: str, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """After the module of a target."""
        return self.add(target, args[0], output)

    def add(self, target: str, x: Tensor, output: Tensor) -> Tensor | None:
        """base(x) + scale · (x A) B; None leaves the output as it is."""
        worn = self.worn.get(_thread())
        if worn is None or (self.layer, target) not in worn.weights.layout.place_of:
            return None
        layout = worn.weights.layout
        site, position = layout.site_of(self.layer, target)
        if site.input not in worn.read:  # the first target of a site reads its input for all of them
            worn.read[site.input] = low_rank(x, worn.weights.site(site))
        own = worn.read[site.input][..., position * layout.rank : (position + 1) * layout.rank]
        b = worn.weights.b_of(self.layer, target)
        if b.ndim == 2 and output.dtype == own.dtype:
            # One pass over the output where a product, a scaling and a sum are three.
            flat = torch.addmm(output.flatten(0, 1), own.flatten(0, 1), b, alpha=layout.scale)
            return flat.view_as(output)
        return output + (layout.scale * low_rank(own, b)).to(output.dtype)


def _thread() -> int:
    # Compiled code runs under its own guards; the number of the thread that traced it must not be baked in.
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


class Wearer:
    """Teaches a language model to take `perceptual_weights` as an argument of `forward`.

    The model itself stays what it was: without the argument it computes exactly what it did before, and `remove`
    leaves no trace.

    Args:
        language_model: the decoder without its head.
        places: where weights will be worn; other linears get no hook, and cost nothing. None means everywhere.
    """

    def __init__(self, language_model: nn.Module, places: Sequence[Place] | None = None) -> None:
        check_supported(language_model.config.model_type)  # type: ignore[union-attr]
        self._handles: list[RemovableHandle] = []
        for index, block in enumerate(language_model.layers):  # type: ignore[arg-type]
            targets = {place.target for place in places if place.layer == index} if places is not None else MODULE_OF
            self._hook(block, _Block(index), [target for target in MODULE_OF if target in targets])

    def _hook(self, block: nn.Module, hooks: _Block, targets: Sequence[str]) -> None:
        # Also where nothing is worn: attention kernels need not accept the argument.
        attention = block.get_submodule("self_attn")
        self._handles.append(attention.register_forward_pre_hook(hooks.take, with_kwargs=True))
        for target in targets:
            module = block.get_submodule(MODULE_OF[target])
            # No closure: a deep copy of the model must get hooks that know the copies of these blocks.
            self._handles.append(module.register_forward_hook(partial(hooks.after, target)))
        if targets:
            self._handles.append(block.get_submodule("mlp").register_forward_hook(hooks.leave))

    def remove(self) -> None:
        """Take every hook off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Return(torch.autograd.Function):
    """The identity on `x` that, in the backward pass, hands on the gradient a leaf has gathered by then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, leaf: Tensor) -> Tensor:
        ctx.leaf = leaf
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        gathered, ctx.leaf.grad = ctx.leaf.grad, None
        return grads[0], gathered, None


def for_reentrant_checkpointing(embeddings: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Make values usable inside re-entrant checkpoints.

    A re-entrant checkpoint runs a backward pass of its own for every block, and tensors that reach the block as
    keyword arguments would have their history walked, and freed, by the first of them. So the blocks get a leaf in
    place of `values`; the gradient it gathers is handed to `values` when the outer backward pass arrives at the
    embeddings, which is after all blocks.

    Returns:
        The embeddings to give the language model, and the leaf to wear.
    """
    leaf = values.detach().requires_grad_()
    return _Return.apply(embeddings, values, leaf), leaf
