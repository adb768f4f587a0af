"""The perceptual weights generator: features -> visual parameters -> factors (paper section 3.2, figure 2).

    features [image, patch, vision_dim]
        │  project, add positions                                     memory  [image, patch, dim]
        ▼
    trunk: perceptual queries [targets, layers, dim], `depth` blocks of
           q += self-attention(LN q);  q += cross-attention(LN q, memory);  q += MLP(LN q)
        │
        ▼
    visual parameters [image, targets, layers, dim]      the compact form of an image
        │  LN, then a head
        ▼
    A [image, in_dim, rank] from the image;   B [rank, out_dim] learned, shared by all images, zero at the start

`queries: separate` gives each target a trunk of its own, as the authors' code does; `joint` lets all queries go
through one trunk, as the paper draws it.

`head: linear` is one linear layer dim -> in_dim · rank per target, shared by its layers. At 7B these are 80 % of the
generator. `head: dictionary` is A = D C: the image says which mixture C [atoms, rank], dim -> atoms · rank, of
directions D [in_dim, atoms] a layer reads, and each (layer, target) learns directions of its own.

`factors` says what the image makes. `a`, as drawn, lets it decide what is read. `b` lets it write: A is learned, and
B = learned B + generated B, made as A would be, and zero at the start. `ab` lets it do both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..errors import InputError
from .configuration import GeneratorConfig
from .weights import Layout, PerceptualWeights, Place, VisualParameters


class Attention(nn.Module):
    """Multi-head attention of `[batch, query, dim]` over `[batch, key, dim]`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, queries), (self.k_proj, memory), (self.v_proj, memory))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm self-attention, cross-attention to the image, MLP."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, int(config.dim * config.mlp_ratio)
        self.self_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, config.heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = Attention(dim, config.heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        normed = self.self_norm(queries)
        queries = queries + self.self_attention(normed, normed)
        queries = queries + self.cross_attention(self.cross_norm(queries), memory)
        return queries + self.mlp(self.mlp_norm(queries))


class Trunk(nn.Module):
    """Perceptual queries that look at an image.

    Args:
        config: the generator's.
        queries: how many.
    """

    def __init__(self, config: GeneratorConfig, queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, memory: Tensor) -> Tensor:
        """`[image, patch, dim]` -> `[image, query, dim]`."""
        x = self.queries.expand(len(memory), -1, -1)
        for block in self.blocks:
            x = block(x, memory)
        return x


class PerceptualWeightsGenerator(nn.Module):
    """Turns the features of an image into low-rank weights of a language model.

    Args:
        config: sizes and options.
        vision_dim: width of the features.
        patches: features per image; positions are learned for exactly that many.
        places: where weights go and the shapes of the real linears there (see `inject.find_places`).
    """

    def __init__(self, config: GeneratorConfig, *, vision_dim: int, patches: int, places: tuple[Place, ...]) -> None:
        super().__init__()
        self.config = config
        self.targets = tuple(config.targets)
        self.layers = tuple(sorted({place.layer for place in places}))
        self.layout = Layout(
            places, config.rank + config.static_rank, config.alpha / config.rank, factors=config.factors
        )
        self.vision_dim, self.patches = vision_dim, patches

        self.feature_norm = nn.LayerNorm(vision_dim) if config.norms else nn.Identity()
        self.project = nn.Linear(vision_dim, config.dim)
        self.positions = nn.Parameter(torch.empty(patches, config.dim))
        names = self.targets if config.queries == "separate" else ("joint",)
        count = len(self.layers) * len(self.targets) // len(names)
        self.trunks = nn.ModuleDict({name: Trunk(config, count) for name in names})

        self.head_norms = nn.ModuleDict({target: nn.LayerNorm(config.dim) for target in self.targets})
        # Named as they have been since there was nothing else: what makes A has no prefix.
        if "a" in config.factors:
            self.heads = self._fresh_heads([(place, place.in_dim) for place in places])
        if "b" in config.factors:
            self.b_heads = self._fresh_heads([(place, place.out_dim) for place in places])
        if config.head == "dictionary":
            if "a" in config.factors:
                self.dictionaries = self._fresh_dictionaries([(place, place.in_dim) for place in places])
            if "b" in config.factors:
                self.b_dictionaries = self._fresh_dictionaries([(place, place.out_dim) for place in places])
        if config.norms:
            self.scales = nn.Parameter(torch.empty(len(self.targets), len(self.layers)))
        if self.layout.shared == "a":
            self.a = _per_place(places, lambda place: (place.in_dim, self.layout.rank))
        elif config.static_rank:
            self.static_a = _per_place(places, lambda place: (place.in_dim, config.static_rank))
        self.b = _per_place(places, lambda place: (self.layout.rank, place.out_dim))
        self.reset_parameters()

    def _fresh_heads(self, widths: list[tuple[Place, int]]) -> nn.ModuleDict:
        """A head for each target, or, without a dictionary, for each target and width of its factor.

        All layers of a target are of one width in every supported family, so this is the authors' head per target.
        """
        config = self.config
        if config.head == "dictionary":
            return nn.ModuleDict({t: nn.Linear(config.dim, config.dictionary_size * config.rank) for t in self.targets})
        names = {_head_name(place.target, width): width for place, width in widths}
        return nn.ModuleDict({name: nn.Linear(config.dim, width * config.rank) for name, width in names.items()})

    def _fresh_dictionaries(self, widths: list[tuple[Place, int]]) -> nn.ParameterDict:
        size = self.config.dictionary_size
        return nn.ParameterDict({_place_name(p.layer, p.target): torch.empty(width, size) for p, width in widths})

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the generator, and of the low-rank path it makes."""
        return self.positions.dtype

    def reset_parameters(self) -> None:
        """Fresh weights in the authors' form: linears at 0.02, unit queries and positions, B at zero.

        With `trunk_init: scaled` what comes before the heads begins at 1/√inputs. A learned A is not zero, so that its
        B learns from the first step on.

        Goes through transformers' `init`, which leaves alone what a checkpoint has filled.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.trunc_normal_(module.weight, std=0.02)
                init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                init.ones_(module.weight)
                init.zeros_(module.bias)
            elif isinstance(module, Trunk):
                init.normal_(module.queries, std=self.config.query_std)
        if self.config.trunk_init == "scaled":
            for module in (self.project, *self.trunks.modules()):
                if isinstance(module, nn.Linear):
                    init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        for head in self._part("heads"):
            init.trunc_normal_(head.weight, std=self.config.head_std)
        for head in self._part("b_heads"):
            init.zeros_(head.weight)
        for dictionary in (*self._part("dictionaries"), *self._part("b_dictionaries")):
            # D C is then as large as what a linear head makes.
            init.normal_(dictionary, std=self.config.dictionary_size**-0.5)
        init.normal_(self.positions, std=self.config.query_std)
        if self.config.norms:
            init.ones_(self.scales)
        for a in (*self._part("a"), *self._part("static_a")):
            init.normal_(a, std=a.shape[0] ** -0.5)
        for b in self.b.values():
            init.zeros_(b)

    def _part(self, name: str) -> list[Any]:
        """The heads or parameters of a part; none, if this configuration has no such part."""
        return list(getattr(self, name, nn.ModuleDict()).values())

    def forward(self, features: Tensor) -> PerceptualWeights:
        """`[image, patch, vision_dim]` -> weights, one sample per image."""
        return self.expand(self.perceive(features))

    def perceive(self, features: Tensor) -> VisualParameters:
        """Features -> visual parameters.

        Args:
            features: `[image, patch, vision_dim]`.

        Raises:
            InputError: features of another shape than the generator was built for.
        """
        if features.shape[1:] != (self.patches, self.vision_dim):
            raise InputError(
                f"This generator was built for features of shape [images, {self.patches}, {self.vision_dim}]; "
                f"got {tuple(features.shape)}: use images of the size in the configuration."
            )
        memory = self.project(self.feature_norm(features.to(self.dtype))) + self.positions
        kind = memory.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):  # once, not anew for the keys and values of every block
            memory = memory.to(torch.get_autocast_dtype(kind))
        codes = torch.cat([trunk(memory) for trunk in self.trunks.values()], dim=1)
        return VisualParameters(codes.unflatten(1, (len(self.targets), len(self.layers))))

    def expand(self, visual_parameters: VisualParameters) -> PerceptualWeights:
        """Visual parameters -> weights, one sample for each."""
        codes = visual_parameters.values.to(self.positions)
        if codes.shape[1:3] != (len(self.targets), len(self.layers)):
            raise InputError(
                f"These visual parameters are for {codes.shape[1]} targets and {codes.shape[2]} layers; this model has "
                f"{len(self.targets)} and {len(self.layers)}: they belong to another model."
            )
        made = {factor: self._factors(factor, codes) for factor in self.config.factors}
        rows = [
            torch.cat([made["a"][site.layer, target] for target in site.targets], dim=-1).flatten(1)
            for site in (self.layout.sites if "a" in made else ())
        ]
        rows += [made["b"][place].flatten(1) for place in (self.layout.b_offsets if "b" in made else ())]
        return self.weights_from(torch.cat(rows, dim=1))

    def weights_from(self, values: Tensor) -> PerceptualWeights:
        """Wrap values `[batch, layout.numel]`, or of several images a row, with the layout and what images share."""
        images = max(1, values.shape[-1] // self.layout.numel)
        shared = self.shared_factors()
        if values.dtype != self.dtype:
            shared = {place: factor.to(values.dtype) for place, factor in shared.items()}
        return PerceptualWeights(values, self.layout.of(images), shared)

    def shared_factors(self) -> dict[tuple[int, str], Tensor]:
        """The factor of each (layer, target) that is no image's but learned for all; empty with factors `ab`."""
        learned = self.a if self.layout.shared == "a" else self.b
        return {place: learned[_place_name(*place)] for place in self.layout.place_of if self.layout.shared}

    def _factors(self, factor: str, codes: Tensor) -> dict[tuple[int, str], Tensor]:
        """A `[image, in_dim, rank]` of every place, or B `[image, rank, out_dim]`.

        Each head runs, and is read, once for all its layers.
        """
        finished = self._with_static if factor == "a" else self._with_learned
        factors: dict[tuple[int, str], Tensor] = {}
        for row, target in enumerate(self.targets):
            generated = self._generated(factor, target, self.head_norms[target](codes[:, row]))
            for column, layer in enumerate(self.layers):
                values = generated[layer]
                if self.config.norms and factor == self.config.factors[0]:  # of A, if the image makes it
                    values = values * self.scales[row, column]
                factors[layer, target] = finished(values, layer, target)
        return factors

    def _generated(self, factor: str, target: str, code: Tensor) -> dict[int, Tensor]:
        """A, or Bᵀ, of each layer of a target, `[image, width, rank]`, from normed codes `[image, layer, dim]`."""
        rank = self.config.rank
        heads = self.heads if factor == "a" else self.b_heads
        if self.config.head == "dictionary":
            mixtures = heads[target](code).unflatten(-1, (self.config.dictionary_size, rank))
            dictionaries = self.dictionaries if factor == "a" else self.b_dictionaries
            return {
                layer: dictionaries[_place_name(layer, target)] @ mixture
                for layer, mixture in zip(self.layers, mixtures.unbind(1), strict=True)
            }
        made: dict[int, Tensor] = {}
        for width, layers in self._layers_by_width(factor, target).items():
            columns = [self.layers.index(layer) for layer in layers]
            values = heads[_head_name(target, width)](code[:, columns]).unflatten(-1, (width, rank))
            made |= dict(zip(layers, values.unbind(1), strict=True))
        return made

    def _layers_by_width(self, factor: str, target: str) -> dict[int, list[int]]:
        widths: dict[int, list[int]] = {}
        for layer in self.layers:
            place = self.layout.place_of[layer, target]
            widths.setdefault(place.in_dim if factor == "a" else place.out_dim, []).append(layer)
        return widths

    def _with_static(self, a: Tensor, layer: int, target: str) -> Tensor:
        """The generated columns and the learned ones side by side: the sum of both updates."""
        if not self.config.static_rank:
            return a
        static = self.static_a[_place_name(layer, target)]
        return torch.cat([a, static.expand(len(a), -1, -1)], dim=-1)

    def _with_learned(self, transposed: Tensor, layer: int, target: str) -> Tensor:
        """Bᵀ as generated -> B, the learned one added; a static pair has the last rows for itself."""
        return self.b[_place_name(layer, target)] + F.pad(transposed.mT, (0, 0, 0, self.config.static_rank))


def _per_place(places: tuple[Place, ...], shape: Callable[[Place], tuple[int, int]]) -> nn.ParameterDict:
    return nn.ParameterDict({_place_name(place.layer, place.target): torch.empty(shape(place)) for place in places})


def _place_name(layer: int, target: str) -> str:
    return f"layer{layer}_{target}"


def _head_name(target: str, width: int) -> str:
    return f"{target}_{width}"
