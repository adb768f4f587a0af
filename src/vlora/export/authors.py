"""The authors' checkpoints (`model_type: llava_vlora`): what their configuration and their tensors are called here.

| theirs, in `model.mm_projector.` | ours, in `model.generator.` |
|---|---|
| `visual_proj`, `pos_embed` `[1, patches, dim]` | `project`, `positions` `[patches, dim]` |
| `gen.{i}.queries` `[1, layers, dim]` | `trunks.{target}.queries` `[layers, dim]` |
| `gen.{i}.decoders.{d}.` | `trunks.{target}.blocks.{d}.` |
| `....self_attn`, `multihead_attn` | `....self_attention`, `cross_attention` |
| `....in_proj_weight` `[3 dim, dim]` | `....q_proj.weight`, `k_proj`, `v_proj` `[dim, dim]` |
| `....norm1`, `norm2`, `norm3` | `....self_norm`, `cross_norm`, `mlp_norm` |
| `....linear1`, `linear2` | `....mlp.0`, `mlp.2` |
| `gen.{i}.norm`, `gen.{i}.weights_head` | `head_norms.{target}`, `heads.{target}_{in_dim}` |
| `Bs` `[1, places, out_dim * rank]` | `b.layer{layer}_{target}` `[rank, out_dim]` |

`i` counts the letters of `vlora_type`; places count all layers of the first letter, then all of the next. When the
trunks are joint, `gen.` has no number, and its one norm and head serve all targets: each of ours gets a copy.

The language model's names gain `language_model.`; those of the encoder lose what newer transformers left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..model.configuration import GeneratorConfig

MODEL_TYPE = "llava_vlora"
HEADS = 16  # of the generator's trunk, whatever its width: no setting of theirs
TARGET_OF = {"q": "q", "k": "k", "v": "v", "o": "o", "m": "mlp"}
LETTER_OF = {target: letter for letter, target in TARGET_OF.items()}

GENERATOR, LANGUAGE_MODEL, VISION = "model.generator.", "model.language_model.", "model.vision_tower."
THEIR_GENERATOR, THEIR_LANGUAGE_MODEL, THEIR_VISION = (
    "model.mm_projector.",
    "model.",
    "model.vision_tower.vision_tower.vision_model.",
)

_BLOCK = {
    "self_attention": "self_attn",
    "cross_attention": "multihead_attn",
    "self_norm": "norm1",
    "cross_norm": "norm2",
    "mlp_norm": "norm3",
}
_MLP = {"0": "linear1", "2": "linear2"}
_PACKED = ("q_proj", "k_proj", "v_proj")  # in this order in `in_proj_weight` and `in_proj_bias`


@dataclass(frozen=True)
class Origin:
    """The one tensor of theirs that one of ours comes from.

    Args:
        key: its name.
        shape: its whole shape.
        take: what of it is ours; None takes it as it is.
    """

    key: str
    shape: tuple[int, ...]
    take: Callable[[Tensor], Tensor] | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Our tensor, out of theirs; memory of its own unless it is the same."""
        if self.take is None:
            return tensor.contiguous()
        return self.take(tensor).clone(memory_format=torch.contiguous_format)

    def inside(self, prefix: str) -> Origin:
        """The same, where their name has a prefix."""
        return Origin(prefix + self.key, self.shape, self.take)


def generator_config(fields: Mapping[str, Any], source: str) -> GeneratorConfig:
    """Their generator's settings as ours.

    Args:
        fields: their `config.json`.
        source: named in errors.

    Raises:
        ConfigError: lists every field that is missing or wrong.
    """
    problems = [*_wrong_numbers(fields), *_wrong_letters(fields.get("vlora_type"))]
    if problems:
        raise ConfigError(source, problems)
    return GeneratorConfig(
        targets=[TARGET_OF[letter] for letter in fields["vlora_type"]],
        layer_step=fields["skip_layers"],  # they count blocks from 1, and every so many wears weights
        rank=fields["vlora_rank"],
        alpha=fields["vlora_alpha"],
        dim=fields["vlora_dim"],
        depth=fields["vlora_depth"],
        heads=HEADS,
        queries="separate" if fields["weights_sep"] else "joint",
    )


def _wrong_numbers(fields: Mapping[str, Any]) -> list[str]:
    counts = ("vlora_dim", "vlora_depth", "vlora_rank", "vlora_visual_dim", "vlora_pos_num", "skip_layers")
    problems = [
        f"{name}: {fields.get(name)!r} is not a {'whole ' if kinds == (int,) else ''}number above 0"
        for name, kinds in (*((name, (int,)) for name in counts), ("vlora_alpha", (int, float)))
        if not _is_positive(fields.get(name), kinds)
    ]
    if not isinstance(fields.get("weights_sep"), bool):
        problems.append(f"weights_sep: {fields.get('weights_sep')!r} is neither true nor false")
    return problems


def _is_positive(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and value > 0


def _wrong_letters(letters: Any) -> list[str]:
    if isinstance(letters, str) and letters and set(letters) <= TARGET_OF.keys() and len(set(letters)) == len(letters):
        return []
    return [f"vlora_type: {letters!r} is not a word of different letters out of {' '.join(TARGET_OF)}"]


def origins(shapes: Mapping[str, tuple[int, ...]], *, letters: str, layers: Sequence[int]) -> dict[str, Origin]:
    """Where each tensor of a whole model comes from.

    Args:
        shapes: our names with our shapes.
        letters: their `vlora_type`.
        layers: the decoder blocks that wear weights.
    """
    generator = {name.removeprefix(GENERATOR): shape for name, shape in shapes.items() if name.startswith(GENERATOR)}
    found = {
        GENERATOR + name: origin.inside(THEIR_GENERATOR)
        for name, origin in generator_origins(generator, letters=letters, layers=layers).items()
    }
    for name, shape in shapes.items():
        for ours, theirs in ((LANGUAGE_MODEL, THEIR_LANGUAGE_MODEL), (VISION, THEIR_VISION), ("lm_head.", "lm_head.")):
            if name.startswith(ours):
                found[name] = Origin(theirs + name.removeprefix(ours), shape)
    return found


def generator_origins(
    shapes: Mapping[str, tuple[int, ...]], *, letters: str, layers: Sequence[int]
) -> dict[str, Origin]:
    """Where each tensor of a generator comes from, without the prefixes of a checkpoint; see `origins`."""
    numbering = _Numbering(letters, tuple(layers), joint="trunks.joint.queries" in shapes)
    return {name: _generator_origin(name, shape, numbering) for name, shape in shapes.items()}


@dataclass(frozen=True)
class _Numbering:
    """How they count trunks and places."""

    letters: str
    layers: tuple[int, ...]
    joint: bool

    def trunk(self, target: str) -> str:
        return "gen" if self.joint else f"gen.{self.letters.index(LETTER_OF[target])}"

    @property
    def places(self) -> list[str]:
        return [f"layer{layer}_{TARGET_OF[letter]}" for letter in self.letters for layer in self.layers]

    @property
    def our_order(self) -> list[int]:
        """Their places in our order, in which targets are sorted."""
        targets = sorted(map(TARGET_OF.__getitem__, self.letters), key=list(LETTER_OF).index)
        return [self.places.index(f"layer{layer}_{target}") for target in targets for layer in self.layers]


def _generator_origin(name: str, shape: tuple[int, ...], numbering: _Numbering) -> Origin:
    part, *rest = name.split(".")
    match part:
        case "project":
            return Origin(f"visual_proj.{rest[0]}", shape)
        case "positions":
            return Origin("pos_embed", (1, *shape), _first)
        case "trunks":
            return _trunk_origin(rest, shape, numbering)
        case "head_norms":
            return Origin(f"{numbering.trunk(rest[0])}.norm.{rest[1]}", shape, _copy(numbering))
        case "heads":
            target = rest[0].split("_")[0]
            return Origin(f"{numbering.trunk(target)}.weights_head.{rest[1]}", shape, _copy(numbering))
        case "b":
            (rank, out_dim), places = shape, numbering.places
            return Origin("Bs", (1, len(places), out_dim * rank), _place(places.index(rest[0]), rank))
        case _:
            raise KeyError(name)


def _trunk_origin(rest: Sequence[str], shape: tuple[int, ...], numbering: _Numbering) -> Origin:
    target, *inside = rest
    trunk = numbering.trunk(target)
    if inside == ["queries"]:
        order = numbering.our_order if numbering.joint else None
        return Origin(f"{trunk}.queries", (1, *shape), _first if order is None else _picked(order))
    _, depth, part, *last = inside
    block = f"{trunk}.decoders.{depth}"
    if part == "mlp":
        return Origin(f"{block}.{_MLP[last[0]]}.{last[1]}", shape)
    if last[0] in _PACKED:
        key = f"{block}.{_BLOCK[part]}.in_proj_{last[1]}"
        return Origin(key, (3 * shape[0], *shape[1:]), _third(_PACKED.index(last[0])))
    return Origin(".".join((block, _BLOCK[part], *last)), shape)


def _first(tensor: Tensor) -> Tensor:
    return tensor[0]


def _copy(numbering: _Numbering) -> Callable[[Tensor], Tensor] | None:
    return (lambda tensor: tensor) if numbering.joint else None


def _picked(order: Sequence[int]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor[0, list(order)]


def _third(number: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.chunk(3)[number]


def _place(number: int, rank: int) -> Callable[[Tensor], Tensor]:
    """Theirs is B transposed, `[out_dim, rank]`, laid flat."""
    return lambda tensor: tensor[0, number].unflatten(0, (-1, rank)).T
