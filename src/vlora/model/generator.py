"""The perceptual weights generator: features -> visual parameters -> factors (paper section 3.2, figure 2).

    features [image, patch, vision_dim]
        │  project, add positions                                     memory  [image, patch, dim]
        ▼
    trunk: perceptual queries [targets, layers, dim], `depth` blocks of
           q += self-attention(LN q);  q += cross-attention(LN q, memory);  q += MLP(LN q)
        │
        ▼
    visual parameters [image, targets, layers, dim]      the compact form of an image
        │  LN, then one linear per target, shared by its layers
        ▼
    A [image, in_dim, rank] from the image;   B [rank, out_dim] learned, shared by all images, zero at the start

`queries: separate` gives each target a trunk of its own, as the authors' code does; `joint` lets all queries go
through one trunk, as the paper draws it.
"""

from __future__ import annotations

from typing import cast

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
        self.layout = Layout(places, config.rank + config.static_rank, config.alpha / config.rank)
        self.vision_dim, self.patches = vision_dim, patches

        self.feature_norm = nn.LayerNorm(vision_dim) if config.norms else nn.Identity()
        self.project = nn.Linear(vision_dim, config.dim)
        self.positions = nn.Parameter(torch.empty(patches, config.dim))
        names = self.targets if config.queries == "separate" else ("joint",)
        count = len(self.layers) * len(self.targets) // len(names)
        self.trunks = nn.ModuleDict({name: Trunk(config, count) for name in names})

        self.head_norms = nn.ModuleDict({target: nn.LayerNorm(config.dim) for target in self.targets})
        # One head per target and input width: layers of one width share it. All are of one width in every
        # supported family, so in practice this is the authors' one head per target.
        self.heads = nn.ModuleDict(
            {
                _head_name(place.target, place.in_dim): nn.Linear(config.dim, place.in_dim * config.rank)
                for place in places
            }
        )
        if config.norms:
            self.scales = nn.Parameter(torch.empty(len(self.targets), len(self.layers)))
        if config.static_rank:
            self.static_a = nn.ParameterDict(
                {_place_name(p.layer, p.target): torch.empty(p.in_dim, config.static_rank) for p in places}
            )
        self.b = nn.ParameterDict(
            {_place_name(p.layer, p.target): torch.empty(self.layout.rank, p.out_dim) for p in places}
        )
        self.reset_parameters()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the generator, and of the low-rank path it makes."""
        return self.positions.dtype

    def reset_parameters(self) -> None:
        """Fresh weights in the authors' form: linears at 0.02, unit queries and positions, B at zero.

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
        for head in self.heads.children():
            init.trunc_normal_(cast("Tensor", head.weight), std=self.config.head_std)
        init.normal_(self.positions, std=self.config.query_std)
        if self.config.norms:
            init.ones_(self.scales)
        if self.config.static_rank:
            for a in self.static_a.values():
                init.normal_(a, std=a.shape[0] ** -0.5)
        for b in self.b.values():
            init.zeros_(b)

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
        codes = torch.cat([trunk(memory) for trunk in self.trunks.values()], dim=1)
        return VisualParameters(codes.unflatten(1, (len(self.targets), len(self.layers))))

    def expand(self, visual_parameters: VisualParameters) -> PerceptualWeights:
        """Visual parameters -> factors of every (layer, target)."""
        codes = visual_parameters.values.to(self.positions)
        if codes.shape[1:3] != (len(self.targets), len(self.layers)):
            raise InputError(
                f"These visual parameters are for {codes.shape[1]} targets and {codes.shape[2]} layers; this model has "
                f"{len(self.targets)} and {len(self.layers)}: they belong to another model."
            )
        factors = self._factors(codes)
        rows = (
            torch.cat([factors[site.layer, target] for target in site.targets], dim=-1).flatten(1)
            for site in self.layout.sites
        )
        return self.weights_from(torch.cat(list(rows), dim=1))

    def weights_from(self, values: Tensor) -> PerceptualWeights:
        """Wrap A values `[batch, layout.numel]` with this generator's layout and B."""
        b = {(p.layer, p.target): self.b[_place_name(p.layer, p.target)] for p in self.layout.places}
        if values.dtype != self.dtype:
            b = {place: factor.to(values.dtype) for place, factor in b.items()}
        return PerceptualWeights(values, self.layout, b)

    def _factors(self, codes: Tensor) -> dict[tuple[int, str], Tensor]:
        """A of every (layer, target), `[image, in_dim, rank]`; each head runs, and is read, once for all its layers."""
        factors: dict[tuple[int, str], Tensor] = {}
        for row, target in enumerate(self.targets):
            code = self.head_norms[target](codes[:, row])
            for in_dim, layers in self._layers_by_width(target).items():
                columns = [self.layers.index(layer) for layer in layers]
                a = self.heads[_head_name(target, in_dim)](code[:, columns])
                a = a.unflatten(-1, (in_dim, self.config.rank))
                if self.config.norms:
                    a = a * self.scales[row, columns][:, None, None]
                factors |= {(layer, target): a[:, number] for number, layer in enumerate(layers)}
        if self.config.static_rank:
            factors = {place: self._with_static(a, *place) for place, a in factors.items()}
        return factors

    def _layers_by_width(self, target: str) -> dict[int, list[int]]:
        widths: dict[int, list[int]] = {}
        for layer in self.layers:
            widths.setdefault(self.layout.place_of[layer, target].in_dim, []).append(layer)
        return widths

    def _with_static(self, a: Tensor, layer: int, target: str) -> Tensor:
        """The generated columns and the learned ones side by side: the sum of both updates."""
        static = self.static_a[_place_name(layer, target)]
        return torch.cat([a, static.expand(len(a), -1, -1)], dim=-1)


def _place_name(layer: int, target: str) -> str:
    return f"layer{layer}_{target}"


def _head_name(target: str, in_dim: int) -> str:
    return f"{target}_{in_dim}"
