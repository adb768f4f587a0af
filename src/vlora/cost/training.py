"""The work of a training step, by part: what is computed for one image and the texts about it.

    forward     encoder, bridge (generator or projector), language model with what it wears, logits
    backward    as far down as something learns, and no further
    recompute   with gradient checkpointing: the blocks that the backward pass goes through, once more, almost

Two counts of the same step. `step_work` is our trainer's: logits at supervised positions, nothing below the first
block that wears weights. `plain_work` is what papers and tables count: logits everywhere, the backward pass of a part
is one forward pass for its input, another for its weights. Equations are in `formulas.py`; here they are added up.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..model.weights import Place
from . import formulas
from .bill import Shapes
from .formulas import FLOPS_PER_MAC


@dataclass(frozen=True)
class Learning:
    """Which parts learn.

    Args:
        language_model: `frozen`, `full`, or `lora`.
        vision: whether the encoder does.
        bridge: whether the generator does, or the projector.
        lora_rank: of LoRA on every block of the language model.
        lora_targets: its targets.
    """

    language_model: str = "frozen"
    vision: bool = False
    bridge: bool = True
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()

    @property
    def full(self) -> bool:
        """Whether the matrices of the language model learn."""
        return self.language_model == "full"

    @property
    def lora(self) -> bool:
        """Whether LoRA beside them does."""
        return self.language_model == "lora"

    @property
    def sees(self) -> bool:
        """Whether a gradient goes back to what was seen."""
        return self.bridge or self.vision


@dataclass(frozen=True)
class Rows:
    """The texts about one image.

    Args:
        tokens: text tokens of a row.
        supervised: positions of a row with a loss.
        questions: rows of one image.
        visual_tokens: N, before the text tokens of each row; 0 if the image is worn.
    """

    tokens: int
    supervised: int
    questions: int = 1
    visual_tokens: int = 0

    @property
    def positions(self) -> int:
        """Tokens of a row that the language model computes."""
        return self.visual_tokens + self.tokens

    @property
    def packed(self) -> Rows:
        """All of them in one row, as `model/packing.py` reads them: the visual tokens are there once."""
        return Rows(self.questions * self.tokens, self.questions * self.supervised, 1, self.visual_tokens)


@dataclass(frozen=True)
class Work:
    """FLOPs of one pass."""

    encoder: int = 0
    bridge: int = 0
    language_model: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """Of all parts."""
        return self.encoder + self.bridge + self.language_model + self.logits


@dataclass(frozen=True)
class Step:
    """FLOPs of one image and its rows; `recompute` is paid with gradient checkpointing only."""

    forward: Work
    backward: Work
    recompute: int

    def total(self, *, checkpointing: bool) -> int:
        """Of the whole step."""
        return self.forward.total + self.backward.total + (self.recompute if checkpointing else 0)


def step_work(shapes: Shapes, rows: Rows, learning: Learning) -> Step:
    """A step as our trainer computes it."""
    llm = shapes.language_model
    logits = rows.questions * rows.supervised * llm.hidden * llm.vocab
    first = first_backward_block(shapes, rows, learning)
    return Step(
        forward=_forward(shapes, rows, learning, logits=rows.supervised),
        backward=_flops(
            encoder=2 * formulas.encoder_macs(shapes.encoder) if learning.vision else 0,
            bridge=_bridge_backward(shapes, rows, learning),
            language_model=rows.questions * _language_model_backward(shapes, rows, learning),
            logits=logits * (1 + learning.full) if first < llm.layers else 0,
        ),
        recompute=FLOPS_PER_MAC * rows.questions * _again(shapes, rows, learning, first=first),
    )


def plain_work(shapes: Shapes, rows: Rows, learning: Learning) -> Step:
    """A step as it is counted on paper: forward · (1 + 1 for the input + 1 for the weights, where they learn).

    The bridge is counted three times if it learns, the language model twice, three times if it learns too, with
    logits at all positions; recomputation is its whole forward pass.
    """
    forward = _forward(shapes, rows, learning, logits=rows.positions)
    times = 1 + learning.full
    backward = Work(
        encoder=2 * forward.encoder if learning.vision else 0,
        bridge=2 * forward.bridge if learning.bridge else 0,
        language_model=times * forward.language_model,
        logits=times * forward.logits,
    )
    return Step(forward, backward, forward.language_model + forward.logits)


def first_backward_block(shapes: Shapes, rows: Rows, learning: Learning) -> int:
    """The lowest decoder block that the backward pass goes through; the number of blocks if it goes through none."""
    if learning.full or learning.lora or (rows.visual_tokens and learning.sees):
        return 0
    return min(shapes.generator.worn_layers) if learning.sees else shapes.language_model.layers


def lora_places(shapes: Shapes, learning: Learning) -> tuple[Place, ...]:
    """Where LoRA on the language model is: its targets in every block."""
    llm = shapes.language_model
    targets = learning.lora_targets if learning.lora else ()
    return tuple(llm.place(layer, target) for layer in range(llm.layers) for target in targets)


def lora_parameters(shapes: Shapes, learning: Learning) -> int:
    """Numbers in LoRA on the language model.

    Σ rank (in_dim + out_dim)
    """
    return sum(learning.lora_rank * (place.in_dim + place.out_dim) for place in lora_places(shapes, learning))


def _forward(shapes: Shapes, rows: Rows, learning: Learning, *, logits: int) -> Work:
    llm, visual = shapes.language_model, rows.visual_tokens
    bridge = formulas.projector_macs(shapes.encoder.dim, llm, visual) if visual else _generator(shapes)
    return _flops(
        encoder=formulas.encoder_macs(shapes.encoder),
        bridge=bridge,
        language_model=rows.questions * _blocks(shapes, rows, learning, first=0),
        logits=rows.questions * logits * llm.hidden * llm.vocab,
    )


def _generator(shapes: Shapes) -> int:
    return formulas.generator_macs(shapes.generator)


def _blocks(shapes: Shapes, rows: Rows, learning: Learning, *, first: int) -> int:
    """MACs of the forward pass of a row through the blocks from `first` on, with all that lies beside them."""
    llm, positions = shapes.language_model, rows.positions
    block = positions * formulas.block_weights(llm) + formulas.attention_macs(llm, positions, positions)
    worn = () if rows.visual_tokens else shapes.generator.places
    beside = sum(
        rank * (place.in_dim + place.out_dim)
        for places, rank in ((worn, shapes.generator.worn_rank), (lora_places(shapes, learning), learning.lora_rank))
        for place in places
        if place.layer >= first
    )
    return (llm.layers - first) * block + positions * beside


def _again(shapes: Shapes, rows: Rows, learning: Learning, *, first: int) -> int:
    """MACs of computing the blocks from `first` on once more.

    torch stops at the last tensor that the backward pass asks for, so that the last product of a block is spared:
    `down`, or, where a ΔW is at `down` or `mlp`, the second factor of it.
    """
    llm = shapes.language_model
    last = dict.fromkeys(range(first, llm.layers), llm.ffn * llm.hidden)
    worn = () if rows.visual_tokens else shapes.generator.places
    for places, rank in ((lora_places(shapes, learning), learning.lora_rank), (worn, shapes.generator.worn_rank)):
        last |= {p.layer: rank * p.out_dim for p in places if p.layer >= first and p.target in ("down", "mlp")}
    return _blocks(shapes, rows, learning, first=first) - rows.positions * sum(last.values())


def _language_model_backward(shapes: Shapes, rows: Rows, learning: Learning) -> int:
    """MACs of the backward pass of a row through the decoder blocks."""
    if learning.lora:
        return _backward_beside_lora(shapes, rows, learning)
    if not learning.full and not learning.sees:
        return 0
    blocks = formulas.llm_backward_macs(
        shapes.language_model,
        rows.positions,
        0,
        generator=None if rows.visual_tokens or not learning.sees else shapes.generator,
        # Where the language model learns, so do its embeddings: the input of the first block needs a gradient too.
        input_trained=learning.full or bool(rows.visual_tokens),
        weights_trained=learning.full,
    )
    return blocks + _constant_weights_backward(shapes, rows, learning)


def _backward_beside_lora(shapes: Shapes, rows: Rows, learning: Learning) -> int:
    llm, positions, generator = shapes.language_model, rows.positions, shapes.generator
    worn = generator.places if learning.sees and not rows.visual_tokens else ()
    from_below = bool(rows.visual_tokens and learning.sees)
    total = _constant_weights_backward(shapes, rows, learning)
    for layer in range(llm.layers):
        behind = from_below or layer > 0
        beside = [place for place in lora_places(shapes, learning) if place.layer == layer]
        here = [place for place in worn if place.layer == layer]
        total += formulas.block_backward_macs(
            llm,
            positions,
            input_trained=behind,
            worn={place.target for place in (*beside, *here)},
            weights_trained=False,
        )
        for places, rank in ((beside, learning.lora_rank), (here, generator.worn_rank)):
            total += formulas.wearing_backward_macs(places, rank, positions, input_trained=behind)
    return total


def _constant_weights_backward(shapes: Shapes, rows: Rows, learning: Learning) -> int:
    """Through weights that are worn but do not learn, only the gradient of x goes back."""
    if rows.visual_tokens or learning.sees:
        return 0
    return formulas.wearing_macs(shapes.generator, rows.tokens)


def _bridge_backward(shapes: Shapes, rows: Rows, learning: Learning) -> int:
    if rows.visual_tokens:
        sizes = (shapes.encoder.dim, shapes.language_model, rows.visual_tokens)
        once = formulas.projector_macs(*sizes)
        learned, first = formulas.projector_backward_macs(*sizes), 2 * once
    else:
        once, learned = _generator(shapes), formulas.generator_backward_macs(shapes.generator)
        first = 2 * once
    if learning.bridge:
        return first if learning.vision else learned
    return once if learning.vision else 0


def _flops(**macs: int) -> Work:
    return Work(**{part: FLOPS_PER_MAC * count for part, count in macs.items()})
