"""The method once more, slowly: one image, one text, and a loop for every token, query and head.

Written from the formulas, in float64, and from nothing of `vlora.model` but its weights:

    memory_p  = W f_p + b + position_p                                    (f normalised first, with `norms`)
    query     : q += SA(LN q);  q += CA(LN q, memory);  q += MLP(LN q)     per block
    A         = head(LN query), [in_dim, rank]                            (times a scale, with `norms`)
    A         = D C,  C = head(LN query), [atoms, rank]                   with a dictionary
    B         = B + generated B, made as A is                             with factors `ab`
    A, B      : the static pair stands beside the generated one
    y         = W x + b + (alpha / rank) · (x A) B                        at q k v o gate up down
    mlp(x)    = down(silu(gate x) · up x) + (alpha / rank) · (x A) B       the bypass
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlora.model import VLoRAForConditionalGeneration

Factors = dict[tuple[int, str], tuple[Tensor, Tensor]]


def reference_factors(model: VLoRAForConditionalGeneration, image: Tensor) -> Factors:
    """A `[in_dim, rank]` and B `[rank, out_dim]` of every (layer, target), for one image `[3, height, width]`."""
    generator, config = model.model.generator, model.config.generator_config
    states = model.model.vision_tower(pixel_values=image[None], output_hidden_states=True).hidden_states
    features = states[-2][0, 1:].double()  # last but one, without the class token

    memory: list[Tensor] = []
    for patch, feature in enumerate(features):
        if config.norms:
            feature = _layer_norm(generator.feature_norm, feature)
        memory.append(_linear(generator.project, feature) + generator.positions[patch].double())

    layers = model.config.generator_config.worn_layers(model.config.text_config.num_hidden_layers)
    codes: dict[tuple[int, str], Tensor] = {}
    if config.queries == "separate":
        for target in config.targets:
            for layer, code in zip(layers, _trunk(generator.trunks[target], memory), strict=True):
                codes[layer, target] = code
    else:
        order = [(layer, target) for target in config.targets for layer in layers]
        for place, code in zip(order, _trunk(generator.trunks["joint"], memory), strict=True):
            codes[place] = code

    factors: Factors = {}
    for (layer, target), code in codes.items():
        normed = _layer_norm(generator.head_norms[target], code)
        place = f"layer{layer}_{target}"
        scale = generator.scales[config.targets.index(target), layers.index(layer)].double() if config.norms else 1
        b = generator.b[place].double().clone()
        if config.factors == "b":
            a = generator.a[place].double()
            b[: config.rank] += scale * _generated(generator, "b_", layer, target, normed).T
            factors[layer, target] = a, b
            continue
        a = scale * _generated(generator, "", layer, target, normed)
        if config.factors == "ab":
            b[: config.rank] += _generated(generator, "b_", layer, target, normed).T
        if config.static_rank:
            a = torch.cat([a, generator.static_a[place].double()], dim=1)
        factors[layer, target] = a, b
    return factors


def _generated(generator: Any, side: str, layer: int, target: str, code: Tensor) -> Tensor:
    """A, or with side `b_` the transposed B, `[width, rank]`."""
    heads, rank = getattr(generator, f"{side}heads"), generator.config.rank
    (head,) = [head for name, head in heads.items() if name.split("_")[0] == target]
    numbers = _linear(head, code)
    rows = torch.stack([numbers[row : row + rank] for row in range(0, len(numbers), rank)])
    if generator.config.head == "linear":
        return rows
    dictionary = getattr(generator, f"{side}dictionaries")[f"layer{layer}_{target}"].double()
    return torch.stack(
        [sum((d * c for d, c in zip(atoms, rows, strict=True)), torch.zeros(rank)) for atoms in dictionary]
    )


def reference_logits(model: VLoRAForConditionalGeneration, image: Tensor, ids: Tensor) -> Tensor:
    """Logits `[text, vocabulary]` of a Llama that wears one image while it reads `ids [text]`."""
    factors = reference_factors(model, image)
    scale = model.config.generator_config.alpha / model.config.generator_config.rank
    llama: Any = model.model.language_model
    stream = [llama.embed_tokens.weight[token].double() for token in ids]
    for layer, block in enumerate(llama.layers):

        def worn(target: str, x: Tensor, y: Tensor, layer: int = layer) -> Tensor:
            if (layer, target) not in factors:
                return y
            a, b = factors[layer, target]
            return y + scale * (x @ a) @ b

        normed = [_rms_norm(block.input_layernorm, x) for x in stream]
        mixed = _llama_attention(block.self_attn, normed, worn)
        stream = [x + y for x, y in zip(stream, mixed, strict=True)]
        for position, x in enumerate(stream):
            x = _rms_norm(block.post_attention_layernorm, x)
            gate = worn("gate", x, _linear(block.mlp.gate_proj, x))
            inner = gate / (1 + (-gate).exp()) * worn("up", x, _linear(block.mlp.up_proj, x))
            y = worn("down", inner, _linear(block.mlp.down_proj, inner))
            stream[position] = stream[position] + worn("mlp", x, y)
    return torch.stack([_linear(model.lm_head, _rms_norm(llama.norm, x)) for x in stream])


def _llama_attention(module: Any, inputs: Sequence[Tensor], worn: Any) -> list[Tensor]:
    heads, groups, size = module.config.num_attention_heads, module.config.num_key_value_heads, module.head_dim
    theta = module.config.rope_parameters["rope_theta"]
    queries = [worn("q", x, _linear(module.q_proj, x)).split(size) for x in inputs]
    keys = [worn("k", x, _linear(module.k_proj, x)).split(size) for x in inputs]
    values = [worn("v", x, _linear(module.v_proj, x)).split(size) for x in inputs]
    outputs: list[Tensor] = []
    for t in range(len(inputs)):
        mixed: list[Tensor] = []
        for head in range(heads):
            group = head // (heads // groups)
            query = _rotate(queries[t][head], t, theta)
            scores = torch.stack(
                [query @ _rotate(keys[s][group], s, theta) / math.sqrt(size) for s in range(t + 1)]
            ).softmax(0)
            mixed.append(sum((scores[s] * values[s][group] for s in range(t + 1)), torch.zeros(size)))
        joined = torch.cat(mixed)
        outputs.append(worn("o", joined, _linear(module.o_proj, joined)))
    return outputs


def _rotate(x: Tensor, position: int, theta: float) -> Tensor:
    half = len(x) // 2
    turned = x.clone()
    for i in range(half):
        angle = position * theta ** (-i / half)
        turned[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        turned[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return turned


def _trunk(trunk: Any, memory: Sequence[Tensor]) -> list[Tensor]:
    queries = [query.double() for query in trunk.queries]
    for block in trunk.blocks:
        normed = [_layer_norm(block.self_norm, q) for q in queries]
        seen = [_attend(block.self_attention, q, normed) for q in normed]
        queries = [q + s for q, s in zip(queries, seen, strict=True)]
        queries = [q + _attend(block.cross_attention, _layer_norm(block.cross_norm, q), memory) for q in queries]
        for n, q in enumerate(queries):
            hidden = _linear(block.mlp[0], _layer_norm(block.mlp_norm, q))
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            queries[n] = q + _linear(block.mlp[2], hidden)
    return queries


def _attend(module: Any, query: Tensor, memory: Sequence[Tensor]) -> Tensor:
    size = len(query) // module.heads
    keys = [_linear(module.k_proj, m) for m in memory]
    values = [_linear(module.v_proj, m) for m in memory]
    q = _linear(module.q_proj, query)
    mixed: list[Tensor] = []
    for head in range(module.heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.stack([q[part] @ key[part] / math.sqrt(size) for key in keys]).softmax(0)
        mixed.append(sum((s * value[part] for s, value in zip(scores, values, strict=True)), torch.zeros(size)))
    return _linear(module.out_proj, torch.cat(mixed))


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    y = module.weight.double() @ x
    return y if module.bias is None else y + module.bias.double()


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + module.eps).sqrt() * module.weight.double() + module.bias.double()


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    return x / (x.square().mean() + module.variance_epsilon).sqrt() * module.weight.double()
