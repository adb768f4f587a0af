"""The memory of a training step on one device, by part, in bytes.

    weights, gradients, optimizer      by what learns, and by how several devices share it
    activations                        what autograd keeps for the backward pass, per image and its rows

Activations are counted tensor by tensor, as torch keeps them for transformers' decoder blocks, our generator and
LLaVA's projector with fused attention (tests weigh the saved tensors). An allocator needs some room beside them.

Letters as in `formulas.py`; c is the bytes of a number in a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..model.weights import INPUT_OF
from . import formulas
from .bill import Shapes
from .shapes import Encoder, Generator, LanguageModel, ViT
from .training import Learning, Rows, first_backward_block, lora_parameters

STRATEGIES = ("ddp", "fsdp", "zero2")
GIGABYTE = 10**9
RUNTIME = GIGABYTE
"""Bytes of the driver's context, its libraries and their workspaces."""
FULL = 4
"""Bytes of a float32 number: trained weights, their gradients, each of Adam's two moments."""
BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces at a time, as transformers' examples configure it; two buckets are in flight."""


@dataclass(frozen=True)
class Precision:
    """What numbers are kept in.

    Args:
        frozen: bytes of a number of a frozen part.
        compute: bytes of a number in a matrix product.
        mixed: whether trained weights are float32 and cast for each product (autocast).
    """

    frozen: int = 2
    compute: int = 2
    mixed: bool = True


MIXED = Precision()
SINGLE = Precision(frozen=FULL, compute=FULL, mixed=False)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Args:
        frozen: weights that do not learn.
        trained: weights that do, in float32 where they are updated.
        copies: what is made of weights for a step: casts (ddp), gathered shards (fsdp).
        gradients: of the trained weights.
        buckets: gradients on their way between devices.
        optimizer: Adam's moments; with zero2 its float32 weights too.
        language_model: activations of the decoder blocks.
        bridge: activations of the generator or the projector.
        encoder: activations of the encoder, if it learns.
        factors: what the images generate, and its gradient.
        logits: at supervised positions, with probabilities and gradients.
        runtime: see `RUNTIME`.
        looking: hidden states of a frozen encoder, gone before the language model begins.
    """

    frozen: int
    trained: int
    copies: int
    gradients: int
    buckets: int
    optimizer: int
    language_model: int
    bridge: int
    encoder: int
    factors: int
    logits: int
    runtime: int
    looking: int

    @property
    def states(self) -> int:
        """What does not depend on the batch: weights, gradients, optimizer."""
        return self.frozen + self.trained + self.copies + self.gradients + self.buckets + self.optimizer

    @property
    def plain_states(self) -> int:
        """The same as papers count it, without what a step makes of it for its own length."""
        return self.states - self.copies - self.buckets

    @property
    def activations(self) -> int:
        """What grows with the batch, at the end of the forward pass."""
        return self.language_model + self.bridge + self.encoder + self.factors + self.logits

    @property
    def total(self) -> int:
        """The peak."""
        return self.states + self.runtime + max(self.activations, self.looking)

    def to_dict(self) -> dict[str, int]:
        """Bytes by part, and the peak."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"total": self.total}


@dataclass(frozen=True)
class Numbers:
    """Numbers of the model that is trained, by part."""

    encoder: int
    bridge: int
    language_model: int
    lora: int

    def trained(self, learning: Learning) -> int:
        """How many learn."""
        parts = (
            (self.encoder, learning.vision),
            (self.bridge, learning.bridge),
            (self.language_model, learning.full),
            (self.lora, learning.lora),
        )
        return sum(numbers for numbers, learns in parts if learns)

    @property
    def total(self) -> int:
        """Of all parts."""
        return self.encoder + self.bridge + self.language_model + self.lora


def numbers_of(shapes: Shapes, rows: Rows, learning: Learning) -> Numbers:
    """Numbers of the model with weights, or with a projector if there are visual tokens."""
    bridge = (
        formulas.projector_parameters(shapes.encoder.dim, shapes.language_model)
        if rows.visual_tokens
        else formulas.generator_parameters(shapes.generator)
    )
    return Numbers(
        encoder=formulas.encoder_parameters(shapes.encoder),
        bridge=bridge,
        language_model=formulas.llm_parameters(shapes.language_model),
        lora=lora_parameters(shapes, learning),
    )


def step_memory(
    shapes: Shapes,
    rows: Rows,
    learning: Learning,
    *,
    micro_batch: int,
    checkpointing: bool,
    strategy: str = "ddp",
    devices: int = 1,
    precision: Precision = MIXED,
) -> Memory:
    """Price a step.

    Args:
        shapes: of the parts.
        rows: the texts about one image.
        learning: which parts learn.
        micro_batch: images at a time on one device.
        checkpointing: whether decoder blocks are computed again in the backward pass.
        strategy: of `STRATEGIES`.
        devices: that share the work.
        precision: `MIXED`, or `SINGLE`.
    """
    states = _states(shapes, rows, learning, strategy=strategy, devices=devices, precision=precision)
    c, images = precision.compute, micro_batch
    backward = first_backward_block(shapes, rows, learning) < shapes.language_model.layers
    if rows.visual_tokens:
        bridge, factors = projector_activations(shapes, rows, c), 0
    else:
        bridge = generator_activations(shapes.generator, precision)
        factors = formulas.perceptual_weights_bytes(shapes.generator, c) * (2 if learning.sees else 1)
    return Memory(
        **states,
        language_model=images * language_model_activations(shapes, rows, learning, precision, checkpointing),
        bridge=images * bridge if learning.sees else 0,
        encoder=images * encoder_activations(shapes.encoder, precision) if learning.vision else 0,
        factors=images * factors,
        logits=images * logits_bytes(shapes.language_model, rows, c) if backward else 0,
        runtime=RUNTIME,
        looking=0 if learning.vision else images * looking_bytes(shapes.encoder, precision.frozen),
    )


def _states(
    shapes: Shapes, rows: Rows, learning: Learning, *, strategy: str, devices: int, precision: Precision
) -> dict[str, int]:
    """Weights, gradients and optimizer.

    with t numbers that learn and f that do not, on G devices:
    ddp     frozen f c, trained 4 t, copies c t if mixed, gradients 4 t, buckets 4 t if G > 1, optimizer 8 t
    fsdp    the same over G, without buckets; copies: what is gathered, see `gathered_bytes`
    zero2   frozen f c, trained c t, gradients c t / G, buckets two of `BUCKET`, optimizer (4 + 8) t / G
    """
    numbers = numbers_of(shapes, rows, learning)
    t, c = numbers.trained(learning), precision.compute
    frozen = (numbers.total - t) * precision.frozen
    if strategy == "zero2":
        return {
            "frozen": frozen,
            "trained": t * c,
            "copies": 0,
            "gradients": t * c // devices,
            "buckets": 2 * c * min(t, BUCKET) if devices > 1 else 0,
            "optimizer": 3 * FULL * t // devices,
        }
    shards = devices if strategy == "fsdp" else 1
    gathered = strategy == "fsdp" and devices > 1
    return {
        "frozen": frozen // shards,
        "trained": FULL * t // shards,
        "copies": gathered_bytes(shapes, rows, learning, c) if gathered else c * t if precision.mixed else 0,
        "gradients": FULL * t // shards,
        "buckets": FULL * t if strategy == "ddp" and devices > 1 else 0,
        "optimizer": 2 * FULL * t // shards,
    }


def gathered_bytes(shapes: Shapes, rows: Rows, learning: Learning, item: int) -> int:
    """What FSDP2 holds whole: all but the decoder blocks for the length of a step, with its gradients, and two blocks.

    item · (root + root that learns + 2 · a decoder block)      two: the next is fetched, or one has its gradients
    """
    llm, numbers = shapes.language_model, numbers_of(shapes, rows, learning)
    outside = llm.vocab * llm.hidden * (1 if llm.tied else 2)
    learns = (
        (numbers.encoder, learning.vision),
        (numbers.bridge, learning.bridge),
        (outside, learning.full),
    )
    root = sum(part * (1 + learnt) for part, learnt in learns)
    return item * (root + 2 * formulas.block_weights(llm))


# ---- activations ------------------------------------------------------------------------------------


def block_activations(llm: LanguageModel, precision: Precision, *, learning: Learning) -> int:
    """What a decoder block keeps of each token.

    frozen   4 norms h + 2 c q + 2 c kv + 3 c ffn + 4 heads       norms in float32; queries, keys, values, what
                                                                  attention gives; gate, its activation, up
    learns   + 4 norms h + c ffn, and mixed + 5 c h               normed inputs; the input of down; their casts for
                                                                  q, k, v, gate and up
    lora     + (c + 1) Σ in_dim                                   inputs after dropout, and what was dropped
    """
    c = precision.compute
    queries, keys = llm.heads * llm.head_dim, llm.kv_heads * llm.head_dim
    kept = FULL * llm.norms * llm.hidden + 2 * c * (queries + keys) + 3 * c * llm.ffn + FULL * llm.heads
    kept += FULL * (queries + keys) if llm.qk_norm else 0
    if learning.full:
        kept += FULL * llm.norms * llm.hidden + c * llm.ffn + (5 * c * llm.hidden if precision.mixed else 0)
        kept += 0 if precision.mixed else c * 2 * llm.hidden
    if learning.lora:
        kept += (c + 1) * sum(llm.linears[target][0] for target in learning.lora_targets)
    return kept


def worn_activations(generator: Generator, llm: LanguageModel, layer: int, precision: Precision) -> int:
    """What wearing weights keeps of each token of a block: the inputs that A is multiplied by, and x A.

    c (Σ_inputs in_dim + targets r);   what attention gives is kept already
    """
    here = [place for place in generator.places if place.layer == layer]
    inputs = {INPUT_OF[place.target]: place.in_dim for place in here if INPUT_OF[place.target] != "output"}
    return precision.compute * (sum(inputs.values()) + len(here) * generator.worn_rank)


def language_model_activations(
    shapes: Shapes, rows: Rows, learning: Learning, precision: Precision, checkpointing: bool
) -> int:
    """What the decoder keeps of all rows of an image, from the first block on that the backward pass goes through.

    plain           tokens · (Σ_blocks (block + worn) + 4 h)                     4 h: the last norm
    checkpointing   tokens · (c h blocks + the largest block + 4 h)
    """
    llm = shapes.language_model
    first = first_backward_block(shapes, rows, learning)
    if first == llm.layers:
        return 0
    block = block_activations(llm, precision, learning=learning)
    wears = learning.sees and not rows.visual_tokens
    worn = [
        worn_activations(shapes.generator, llm, layer, precision) if wears else 0 for layer in range(first, llm.layers)
    ]
    if checkpointing:
        kept = precision.compute * llm.hidden * len(worn) + block + max(worn)
    else:
        kept = block * len(worn) + sum(worn)
    return rows.questions * rows.positions * (kept + FULL * llm.hidden)


def generator_activations(generator: Generator, precision: Precision) -> int:
    """What the generator keeps of an image.

    mixed    c P v + 2 P d + trunks · depth · (4 P d + n (34 d + 4 mlp))    one cast of the features for all blocks
    single   c P v + 4 P d + trunks · depth · (8 P d + n (48 d + 8 mlp))
    """
    d, n, p = generator.dim, generator.queries, generator.features
    once = precision.compute * p * generator.vision_dim + precision.compute * p * d
    query = (34 * d + 4 * generator.mlp) if precision.mixed else (48 * d + 8 * generator.mlp)
    return once + generator.trunks * generator.depth * (2 * precision.compute * p * d + n * query)


def projector_activations(shapes: Shapes, rows: Rows, item: int) -> int:
    """What the projector keeps of an image: its input, and what lies before and after GELU.

    N c (v + 2 h)
    """
    return rows.visual_tokens * item * (shapes.encoder.dim + 2 * shapes.language_model.hidden)


def encoder_activations(encoder: Encoder, precision: Precision) -> int:
    """What an encoder that learns keeps of an image; 0 for one without a formula.

    tokens · layers · (4 · 2 d + 9 c d + 4 c mlp)
    """
    if not isinstance(encoder, ViT):
        return 0
    c, d = precision.compute, encoder.dim
    return encoder.tokens * encoder.layers * (2 * FULL * d + 9 * c * d + 4 * c * encoder.mlp)


def looking_bytes(encoder: Encoder, item: int) -> int:
    """The hidden states of all blocks of a frozen encoder, which transformers gathers while it looks.

    item · tokens · (layers + 1) · d
    """
    if not isinstance(encoder, ViT):
        return item * encoder.features * encoder.dim
    return item * encoder.tokens * (encoder.layers + 1) * encoder.dim


def logits_bytes(llm: LanguageModel, rows: Rows, item: int) -> int:
    """Logits at supervised positions, their log-probabilities in float32, and the gradients of both on their way.

    supervised · vocab · (c + 4 + 4 + 4)
    """
    return rows.questions * rows.supervised * llm.vocab * (item + 3 * FULL)
