"""`vlora train` with compiled decoder blocks: this and earlier forms of it trained nano's small steps.

    python scripts/train_compiled.py configs/nano.yaml --run-dir runs/nano
    torchrun --nproc-per-node 2 scripts/train_compiled.py configs/nano.yaml --run-dir runs/nano --int8

A decoder block of Llama is written anew as one function of tensors, which Inductor compiles: norms, rotary positions,
softmax and low-rank path become a few loops. With `--int8` its frozen products are in int8, forward and backward: a
scale per token, rounded as it comes, and a scale per row of the matrix, rounded once. That pays where a CPU has int8
units and no others (AVX-512 VNNI without AMX), and is refused where it has none; docs/log.md says how much, and how far
gradients are off. Where a CPU has the language model in bfloat16 (`model.dtype`), the generator's products and the
low-rank path are in it too. On a CPU rows are read a few at a time, each part as wide as its longest.

It is not in the library: it knows one family and targets that are matrices, or visual tokens, which wear nothing; goes
past the hooks of everything else, and needs a compiler, a minute or two for it, and the questions about an image in one
row (`model/packing.py`). Whatever is not like that (evaluation, no gradient, no image) takes the blocks as they are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from vlora.cli import app
from vlora.errors import InputError
from vlora.model.weights import MERGEABLE
from vlora.train import run

Matrix = tuple[Tensor, ...]
"""`[out, in]` as it is; or what `rounded_matrix` makes of it."""
PART = 8
"""Rows that are read together: few, so that a part holds rows of one length, and enough for a product to be large."""
TOKENS = ("input_ids", "inputs_embeds", "position_ids")


@dataclass(frozen=True)
class Block:
    """What is constant in a decoder block; products that read the same are joined."""

    norms: tuple[Tensor, Tensor]
    qkv: Matrix
    o: Matrix
    gate_up: Matrix
    down: Matrix
    widths: tuple[int, ...]
    epsilon: float
    head: int

    def values(self) -> tuple[Any, ...]:
        """As the compiled functions take them."""
        return (*self.norms, self.qkv, self.o, self.gate_up, self.down, self.widths, self.epsilon, self.head)


class RoundedProduct(torch.autograd.Function):
    """`x Wᵀ` in int8, and its gradient with respect to `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, scales: Tensor, back: Tensor, back_scales: Tensor) -> Tensor:
        ctx.save_for_backward(back, back_scales)
        return _product(x, w, scales)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _product(grads[0], *ctx.saved_tensors), None, None, None, None


def _product(x: Tensor, matrix: Tensor, scales: Tensor) -> Tensor:
    rounded, own = _rounded(x)
    return torch._int_mm(rounded, matrix).float() * own * scales


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """`[n, a]` -> int8 of the same shape, and a scale per row, `[n, 1]`."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) * (1 / 127)
    return (x / scale).round().to(torch.int8), scale


def rounded_matrix(weight: Tensor) -> Matrix:
    """`[out, in]` -> `[in, out]` in int8 and its scales, and `[out, in]` and its scales for the way back."""
    (by_out, out_scales), (by_in, in_scales) = _rounded(weight), _rounded(weight.T)
    return by_out.T, out_scales.T.contiguous(), by_in.T, in_scales.T.contiguous()


def int8_pays() -> bool:
    """Whether int8 products are the faster ones here: without int8 units torch makes them number by number."""
    x, w = torch.ones(256, 576), torch.ones(576, 576)
    return _seconds(torch._int_mm, x.to(torch.int8), w.to(torch.int8)) < _seconds(torch.mm, x, w)


def _seconds(product: Callable[..., Tensor], *matrices: Tensor) -> float:
    times: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        product(*matrices)
        times.append(time.perf_counter() - began)
    return min(times)


def _linear(x: Tensor, matrix: Matrix) -> Tensor:
    if len(matrix) == 1:
        return F.linear(x, matrix[0])
    flat: Any = RoundedProduct.apply(x.reshape(-1, x.shape[-1]), *matrix)
    return flat.view(*x.shape[:-1], flat.shape[-1]).to(x.dtype)


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon) * weight.float()).to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, head: int) -> Tensor:
    rows, width, _ = q.shape
    heads, groups = q.shape[-1] // head, k.shape[-1] // head
    q, k = apply_rotary_pos_emb(q.view(rows, width, heads, head), k.view(rows, width, groups, head), cos, sin, 2)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    v = v.view(rows, width, groups, head).transpose(1, 2).reshape(rows * groups, width, head)
    q = q.reshape(rows * groups, heads // groups * width, head)  # the heads of a group one below another
    scores = torch.bmm(q, k.reshape(rows * groups, width, head).transpose(1, 2)) * head**-0.5
    shares = torch.softmax((scores.view(rows, heads, width, width) + mask).float(), -1).to(q.dtype)
    seen = torch.bmm(shares.view(rows * groups, heads // groups * width, width), v)
    return seen.view(rows, heads, width, head).transpose(1, 2).reshape(rows, width, heads * head)


def _run(h, cos, sin, mask, norm_1, norm_2, qkv, o, gate_up, down, widths, epsilon, head, a, b, scale):
    """A block with A by input and B by target; without any it is bare."""

    def wear(name: str, x: Tensor, **outputs: Tensor) -> Any:
        worn = [target for target in outputs if target in b]
        if worn:
            own = (x.to(a[name].dtype) @ a[name]).chunk(len(worn), -1)
            for target, read in zip(worn, own, strict=True):
                y = outputs[target]
                outputs[target] = y + (scale * (read @ b[target])).to(y.dtype)
        return outputs.values()

    x = _norm(h, norm_1, epsilon)
    q, k, v = _linear(x, qkv).split(widths, -1)
    q, k, v = wear("attention", x, q=q, k=k, v=v)
    x = _attend(q, k, v, cos, sin, mask, head)
    (o,) = wear("output", x, o=_linear(x, o))
    h = h + o
    x = _norm(h, norm_2, epsilon)
    gate, up = _linear(x, gate_up).chunk(2, -1)
    gate, up = wear("mlp", x, gate=gate, up=up)
    x = F.silu(gate) * up
    (down,) = wear("down", x, down=_linear(x, down))
    return h + down


COMPILED = torch.compile(_run)


def _joined(*linears: Any, int8: bool) -> Matrix:
    weight = torch.cat([linear.weight.detach() for linear in linears])
    return rounded_matrix(weight.float()) if int8 else (weight,)


def _block(layer: Any, *, int8: bool) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    return Block(
        norms=(layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
        qkv=_joined(*qkv, int8=int8),
        o=_joined(attention.o_proj, int8=int8),
        gate_up=_joined(mlp.gate_proj, mlp.up_proj, int8=int8),
        down=_joined(mlp.down_proj, int8=int8),
        widths=tuple(linear.out_features for linear in qkv),
        epsilon=layer.input_layernorm.variance_epsilon,
        head=attention.head_dim,
    )


def _forward(block: Block, number: int, wears: bool, plain: Any, h: Tensor, **options: Any) -> Tensor:
    weights, mask = options.get("perceptual_weights"), options.get("attention_mask")
    other_rows = wears and (weights is None or len(weights) != len(h))
    if other_rows or mask is None or not torch.is_grad_enabled():
        return plain(h, **options)
    cos, sin = options["position_embeddings"]
    for tensor, lengths in ((h, (1,)), (cos, (1,)), (sin, (1,)), (mask, (2, 3))):
        torch._dynamo.mark_dynamic(tensor, lengths)
    sites = weights.layout.sites_of.get(number) if wears else None
    if not sites:
        with torch.set_grad_enabled(h.requires_grad):  # before the first block that wears, nothing learns
            return COMPILED(h, cos, sin, mask, *block.values(), {}, {}, 1.0)
    a = {site.input: weights.site(site) for site in sites}
    b = {target: weights.b_of(number, target) for site in sites for target in site.targets}
    return COMPILED(h, cos, sin, mask, *block.values(), a, b, weights.layout.scale)


def _in_parts(plain: Any, **given: Any) -> Any:
    """Read a batch of packed rows some at a time, without the padding of longer ones; they come by their length."""
    positions, mask, weights = (given.get(name) for name in ("position_ids", "attention_mask", "perceptual_weights"))
    packed = positions is not None and mask is not None and mask.ndim == 4
    if not packed or len(positions) <= PART or not torch.is_grad_enabled():
        return plain(**given)
    width = positions.shape[1]
    # Padding has position 0, as only a row's first token has.
    lengths = ((positions > 0) * torch.arange(width, device=positions.device)).amax(1) + 1
    parts = lengths.split(PART)
    worn = weights.split([len(part) for part in parts]) if weights is not None else []
    hidden = []
    for number, part in enumerate(parts):
        rows, longest = slice(number * PART, number * PART + len(part)), int(part.max())
        read = {name: value[rows, :longest] for name in TOKENS if (value := given.get(name)) is not None}
        read["attention_mask"] = mask[rows, :, :longest, :longest]
        if worn:
            read["perceptual_weights"] = worn[number]
        hidden.append(F.pad(plain(**given | read).last_hidden_state, (0, 0, 0, width - longest)))
    return BaseModelOutputWithPast(last_hidden_state=torch.cat(hidden))


def _in_bfloat16(function: Any, given: Any) -> Any:
    # torch's own attention takes three to five times as long in bfloat16 on a CPU.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        return function(given)


def compile_blocks(model: Any, *, int8: bool) -> None:
    """Let the blocks of a model that learns to see run compiled, where all texts about an image lie in one row.

    On a CPU whose language model is in bfloat16 the generator makes its weights in it, and they are worn in it.

    Args:
        model: a VLoRA model whose language model is a frozen Llama and wears weights at any of its matrices, or a model
            that sees by visual tokens, whose language model is a frozen Llama.
        int8: of the frozen products.

    Raises:
        InputError: another model.
    """
    decoder: nn.Module = model.model.language_model
    generator = getattr(model.config, "generator_config", None)
    targets = tuple(generator.targets) if generator else ()
    family = decoder.config.model_type  # type: ignore[union-attr]
    if family != "llama" or not {*targets} <= {*MERGEABLE} or any(p.requires_grad for p in decoder.parameters()):
        raise InputError(
            f"Compiled blocks are for a frozen llama that wears weights at some of {' '.join(MERGEABLE)}, or sees by "
            f"visual tokens; this is a {family}, frozen or not, that wears them at {' '.join(targets) or 'no target'}: "
            "use `vlora train`."
        )
    decoder.set_attn_implementation("eager")  # type: ignore[operator]  # its mask is added to scores
    torch._dynamo.config.recompile_limit = 64  # by the number of rows, and by whether weights are worn
    if targets and decoder.device.type == "cpu" and decoder.dtype == torch.bfloat16:
        generator = model.model.generator
        generator.perceive = partial(_in_bfloat16, generator.perceive)
        generator.expand = partial(_in_bfloat16, generator.expand)
    if decoder.device.type == "cpu":
        decoder.forward = partial(_in_parts, decoder.forward)
    layers: Any = decoder.layers
    for number, layer in enumerate(layers):
        layer.forward = partial(_forward, _block(layer, int8=int8), number, bool(targets), layer.forward)


def main(arguments: list[str]) -> None:
    """`vlora train` with other blocks."""
    plain, int8 = run.build, "--int8" in arguments

    def build(config: Any, device: torch.device) -> Any:
        if int8 and device.type == "cpu" and not int8_pays():
            raise InputError("On this CPU products in int8 take longer than in float32: leave --int8 out.")
        learner = plain(config, device)
        compile_blocks(learner.model, int8=int8)
        return learner

    run.build = build
    app(["train", *[argument for argument in arguments if argument != "--int8"]])


if __name__ == "__main__":
    main(sys.argv[1:])
