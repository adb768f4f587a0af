"""Every formula, in one place: one function, one equation. `docs/cost.md` lists them; nothing else computes a cost.

All but the bytes count multiply-accumulates (MACs); a MAC is two FLOPs (`FLOPS_PER_MAC`). Counted are matrix products
and convolutions, the two products of attention among them, which is what torch's `FlopCounterMode` counts. Not
counted: norms, softmax, activations, rotary embeddings, biases, residual sums, and looking a token up.

Attention of T tokens over S keys is counted full, 2 · T · S · heads · head_dim, as plain kernels compute it: the half
that a causal mask throws away is not subtracted, and a sliding window shortens nothing.

Letters: T tokens that are computed, S keys that they attend to, C text tokens, N visual tokens, P features, h width of
the language model, d width of the generator (or, there, the encoder), v width of the features, r rank.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..model.weights import INPUT_OF, Place
from .shapes import CountedEncoder, Encoder, Generator, LanguageModel, ViT

VERSION = 1
"""Raise it when a formula gives another number."""

FLOPS_PER_MAC = 2


# ---- the vision encoder -----------------------------------------------------------------------------


def encoder_macs(encoder: Encoder) -> int:
    """One image through the encoder, all its blocks and its head, with t = patches + prefix tokens of width d.

    patches · pixels · d  +  layers · (4 t d² + 2 t² d + m t d mlp)  +  head;   m = 2, or 3 with a gated MLP
    """
    if isinstance(encoder, CountedEncoder):
        return encoder.macs
    d, t = encoder.dim, encoder.tokens
    block = 4 * t * d * d + 2 * t * t * d + encoder.mlp_matrices * t * d * encoder.mlp
    return encoder.patches * encoder.patch_pixels * d + encoder.layers * block + encoder_head_macs(encoder)


def encoder_head_macs(encoder: ViT) -> int:
    """What an encoder computes after its last block; no feature depends on it, but transformers runs it.

    dense: d²;   attention: (2 t + 2) d² + 2 t d + 2 d mlp   (keys and values of all, one query, its output, an MLP)
    """
    d, t = encoder.dim, encoder.tokens
    if encoder.head == "dense":
        return d * d
    if encoder.head == "attention":
        return (2 * t + 2) * d * d + 2 * t * d + 2 * d * encoder.mlp
    return 0


def encoder_parameters(encoder: Encoder) -> int:
    """Numbers in the encoder.

    (pixels + patch_bias + positions + vectors) d + head
    + layers · (4 d² + d (3 qkv_bias + 1) + MLP + 4 d + 2 d layer_scale)
    """
    if isinstance(encoder, CountedEncoder):
        return encoder.parameters
    d, m = encoder.dim, encoder.mlp
    mlp = encoder.mlp_matrices * d * m + (encoder.mlp_matrices - 1) * m + d
    block = 4 * d * d + d * (3 * encoder.qkv_bias + 1) + mlp + 4 * d + 2 * d * encoder.layer_scale
    head = {"none": 0, "dense": d * d + d, "attention": d + 4 * (d * d + d) + 2 * d + mlp}[encoder.head]
    outside = encoder.patch_pixels + encoder.patch_bias + encoder.positions + encoder.vectors
    return outside * d + encoder.layers * block + head


# ---- the generator ----------------------------------------------------------------------------------


def feature_projection_macs(generator: Generator) -> int:
    """The features, brought to the generator's width.

    P v d
    """
    return generator.features * generator.vision_dim * generator.dim


def trunk_macs(generator: Generator) -> int:
    """All blocks of all trunks, n queries each: self-attention, cross-attention, MLP.

    trunks · depth · (4 n d² + 2 n² d  +  2 n d² + 2 P d² + 2 n P d  +  2 n d mlp)

    Keys and values of all P features are projected anew in every block.
    """
    d, n, p = generator.dim, generator.queries, generator.features
    self_attention = 4 * n * d * d + 2 * n * n * d
    cross_attention = 2 * n * d * d + 2 * p * d * d + 2 * n * p * d
    return generator.trunks * generator.depth * (self_attention + cross_attention + 2 * n * d * generator.mlp)


def head_macs(generator: Generator) -> int:
    """Visual parameters to factors, over all places; w = in_dim for A, out_dim for B, and their sum for both.

    linear:      Σ d w r
    dictionary:  Σ f d K r + w K r      (the mixture C, and D C; f factors; K atoms)
    """
    d, r, k = generator.dim, generator.rank, generator.atoms
    widths = [width for widths in _factor_widths(generator) for _, width in widths]
    if not k:
        return sum(d * width * r for width in widths)
    return sum(d * k * r + width * k * r for width in widths)


def generator_macs(generator: Generator, views: int = 1) -> int:
    """Features of one image, looked at so many times, to its perceptual weights.

    views · (feature_projection + trunk) + head
    """
    return views * (feature_projection_macs(generator) + trunk_macs(generator)) + head_macs(generator)


def trunk_parameters(generator: Generator) -> int:
    """Queries and blocks of all trunks; a block has three norms, two attentions and an MLP.

    trunks · (n d + depth · (6 d + 8 (d² + d) + 2 d mlp + mlp + d))
    """
    d, m = generator.dim, generator.mlp
    block = 6 * d + 8 * (d * d + d) + 2 * d * m + m + d
    return generator.trunks * (generator.queries * d + generator.depth * block)


def head_parameters(generator: Generator) -> int:
    """The heads, one per target and width, which its layers share, and the dictionaries, one per place.

    For each factor that the image makes, w = in_dim for A and out_dim for B:

    linear:      Σ_targets (d + 1) w r
    dictionary:  Σ_targets (d + 1) K r  +  Σ_places w K
    """
    d, r, k = generator.dim, generator.rank, generator.atoms
    total = 0
    for widths in _factor_widths(generator):
        if k:
            total += len(generator.targets) * (d + 1) * k * r + sum(width * k for _, width in widths)
        else:
            total += sum((d + 1) * width * r for _, width in set(widths))
    return total


def b_parameters(generator: Generator) -> int:
    """The learned B of every place.

    Σ (r + static_rank) out_dim
    """
    return sum(generator.worn_rank * place.out_dim for place in generator.places)


def a_parameters(generator: Generator) -> int:
    """What is learned of the A of every place: its static columns, or, if the image makes B alone, all.

    Σ static_rank in_dim;   with factors `b` Σ (r + static_rank) in_dim
    """
    columns = generator.static_rank if "a" in generator.factors else generator.worn_rank
    return sum(columns * place.in_dim for place in generator.places)


def generator_parameters(generator: Generator) -> int:
    """Numbers in the generator.

    (v + 1) d + P d  +  trunks  +  targets · 2 d (norms before the heads)  +  heads  +  learned A and B
    +  with `norms`: 2 v + targets · layers
    """
    d, v = generator.dim, generator.vision_dim
    learned = a_parameters(generator) + b_parameters(generator)
    norms = 2 * v + len(generator.places) if generator.norms else 0
    outside = (v + 1) * d + generator.features * d + len(generator.targets) * 2 * d
    return outside + trunk_parameters(generator) + head_parameters(generator) + learned + norms


def _factor_widths(generator: Generator) -> list[list[tuple[str, int]]]:
    """(target, width) of each place, for each factor that the image makes."""
    widths = {
        "a": [(place.target, place.in_dim) for place in generator.places],
        "b": [(place.target, place.out_dim) for place in generator.places],
    }
    return [widths[factor] for factor in generator.factors]


# ---- the language model -----------------------------------------------------------------------------


def block_weights(llm: LanguageModel) -> int:
    """Entries of the seven matrices of a decoder block, which is also its MACs per token without attention.

    h·q + 2 h·kv + q·h + 3 h·ffn;   q = heads · head_dim, kv = kv_heads · head_dim
    """
    return sum(in_dim * out_dim for in_dim, out_dim in llm.linears.values())


def attention_macs(llm: LanguageModel, tokens: int, keys: int) -> int:
    """Scores and sums of one block: T tokens attend to S keys.

    2 T S heads head_dim
    """
    return 2 * tokens * keys * llm.heads * llm.head_dim


def llm_macs(llm: LanguageModel, tokens: int, keys: int, logits: int) -> int:
    """T tokens through the language model, which attend to S keys; logits for some of them.

    layers · (T · block_weights + attention(T, S))  +  logits · h · vocab

    Prefill: T = S. A question after a cached image: T = C, S = N + C. A decoding step: T = 1.
    """
    block = tokens * block_weights(llm) + attention_macs(llm, tokens, keys)
    return llm.layers * block + logits * llm.hidden * llm.vocab


def decoding_macs(llm: LanguageModel, context: int, steps: int) -> int:
    """Decoding steps after a prefill of so many tokens; step i attends to context + i keys, itself included.

    Σ_{i = 1..steps} llm(1, context + i, 1)
    """
    keys = steps * context + steps * (steps + 1) // 2
    per_token = llm.layers * block_weights(llm) + llm.hidden * llm.vocab
    return steps * per_token + llm.layers * attention_macs(llm, 1, keys)


def wearing_macs(generator: Generator, tokens: int) -> int:
    """The low-rank path beside the linear layers, for T tokens: x A, then (x A) B.

    T · (r + static_rank) · Σ (in_dim + out_dim)
    """
    return tokens * generator.worn_rank * sum(place.in_dim + place.out_dim for place in generator.places)


def llm_parameters(llm: LanguageModel) -> int:
    """Numbers in the language model.

    vocab h · (1 or 2)  +  h  +  layers · (block_weights + biases + norms h + 2 head_dim qk_norm)
    """
    linears = llm.linears
    biased = [*("qkv" if llm.qkv_bias else ""), *(["o"] if llm.o_bias else [])]
    biased += ["gate", "up", "down"] if llm.mlp_bias else []
    biases = sum(linears[name][1] for name in biased)
    block = block_weights(llm) + biases + llm.norms * llm.hidden + 2 * llm.head_dim * llm.qk_norm
    return llm.vocab * llm.hidden * (1 if llm.tied else 2) + llm.hidden + llm.layers * block


# ---- the visual-token model -------------------------------------------------------------------------


def projector_macs(vision_dim: int, llm: LanguageModel, visual_tokens: int) -> int:
    """Two linear layers with GELU between them, as in LLaVA-1.5.

    N (v h + h²)
    """
    return visual_tokens * (vision_dim * llm.hidden + llm.hidden**2)


def projector_parameters(vision_dim: int, llm: LanguageModel) -> int:
    """Numbers in the projector.

    (v + 1) h + (h + 1) h
    """
    return (vision_dim + 1) * llm.hidden + (llm.hidden + 1) * llm.hidden


# ---- a training step: the backward pass -------------------------------------------------------------
# Of a product Y = X W with M MACs, the gradient of X takes M more, if X needs one, and that of W another M, if W
# does. A gradient is needed where something trained lies before.


def gradient_flow(*, input_trained: bool, worn: Collection[str]) -> Mapping[str, bool]:
    """Which inputs within a decoder block need a gradient.

    attention: the block's input does;  output: that, or q, k or v is worn;  mlp: that, or o is worn;
    down: that, or gate or up is worn
    """
    attention = input_trained
    output = attention or not {"q", "k", "v"}.isdisjoint(worn)
    mlp = output or "o" in worn
    down = mlp or not {"gate", "up"}.isdisjoint(worn)
    return {"attention": attention, "output": output, "mlp": mlp, "down": down}


def block_backward_macs(
    llm: LanguageModel, tokens: int, *, input_trained: bool, worn: Collection[str], weights_trained: bool
) -> int:
    """The backward pass of a decoder block without the low-rank path, T tokens.

    Σ_linears T in out · (input needs one + weights trained)  +  T² heads head_dim · (q + k + (q or k) + v)

    where q, k, v say whether queries, keys and values need a gradient: 4 in a block whose input does.
    """
    needs = gradient_flow(input_trained=input_trained, worn=worn)
    linears = sum(
        tokens * in_dim * out_dim * (needs[INPUT_OF[name]] + weights_trained)
        for name, (in_dim, out_dim) in llm.linears.items()
    )
    q, k, v = (input_trained or weights_trained or name in worn for name in "qkv")
    return linears + tokens * tokens * llm.heads * llm.head_dim * (q + k + (q or k) + v)


def wearing_backward_macs(places: Sequence[Place], rank: int, tokens: int, *, input_trained: bool) -> int:
    """The backward pass of the low-rank path of one block: A and B are trained, x only if something lies before it.

    Σ T r (in_dim · (1 + x needs one) + 2 out_dim)
    """
    worn = [place.target for place in places]
    needs = gradient_flow(input_trained=input_trained, worn=worn)
    return sum(
        tokens * rank * (place.in_dim * (1 + needs[INPUT_OF[place.target]]) + 2 * place.out_dim) for place in places
    )


def llm_backward_macs(
    llm: LanguageModel,
    tokens: int,
    logits: int,
    *,
    generator: Generator | None,
    input_trained: bool,
    weights_trained: bool,
) -> int:
    """The backward pass of the language model, with what it wears if there is a generator.

    logits h vocab · (1 + weights trained)  +  Σ_blocks block_backward + wearing_backward

    over the blocks from the first that wears weights on; over all of them if their input (visual tokens) or their
    weights are trained. Embeddings need no product.
    """
    places = generator.places if generator else ()
    everywhere = input_trained or weights_trained
    first = 0 if everywhere else min(place.layer for place in places)
    total = logits * llm.hidden * llm.vocab * (1 + weights_trained)
    for layer in range(first, llm.layers):
        here = [place for place in places if place.layer == layer]
        behind = everywhere or layer > first
        total += block_backward_macs(
            llm,
            tokens,
            input_trained=behind,
            worn=[place.target for place in here],
            weights_trained=weights_trained,
        )
        if generator and here:
            total += wearing_backward_macs(here, generator.worn_rank, tokens, input_trained=behind)
    return total


def generator_backward_macs(generator: Generator) -> int:
    """The backward pass of the generator: twice its forward pass, but features need a gradient only for their norm.

    2 · generator  -  feature_projection · (1 without `norms`)
    """
    spared = 0 if generator.norms else feature_projection_macs(generator)
    return 2 * generator_macs(generator) - spared


def projector_backward_macs(vision_dim: int, llm: LanguageModel, visual_tokens: int) -> int:
    """The backward pass of the projector; its features need no gradient.

    N (v h + 2 h²)
    """
    return visual_tokens * (vision_dim * llm.hidden + 2 * llm.hidden**2)


# ---- bytes that one image takes ---------------------------------------------------------------------


def feature_bytes(generator: Generator, item: int) -> int:
    """Features.

    P v bytes
    """
    return generator.features * generator.vision_dim * item


def visual_parameters_bytes(generator: Generator, item: int) -> int:
    """Visual parameters, the compact form.

    targets · layers · d bytes
    """
    return len(generator.places) * generator.dim * item


def perceptual_weights_bytes(generator: Generator, item: int) -> int:
    """The factors that the image makes.

    Σ (r + static_rank) · w bytes;   w = in_dim for A, out_dim for B
    """
    return generator.worn_rank * item * sum(width for widths in _factor_widths(generator) for _, width in widths)


def kv_cache_bytes(llm: LanguageModel, tokens: int, item: int) -> int:
    """Keys and values of so many tokens.

    2 layers kv_heads head_dim N bytes
    """
    return 2 * llm.layers * llm.kv_heads * llm.head_dim * tokens * item
