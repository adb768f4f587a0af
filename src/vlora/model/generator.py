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

`factors: ab` lets the image write as well as read: B = learned B + generated B, made as A is, and zero at the start.
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
        self.heads = self._fresh_heads([(place, place.in_dim) for place in places])
        if config.factors == "ab":
            self.b_heads = self._fresh_heads([(place, place.out_dim) for place in places])
        if config.head == "dictionary":
            self.dictionaries = self._fresh_dictionaries([(place, place.in_dim) for place in places])
            if config.factors == "ab":
                self.b_dictionaries = self._fresh_dictionaries([(place, place.out_dim) for place in places])
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

        With `trunk_init: scaled` what comes before the heads begins at 1/√inputs.

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
        for head in self.heads.children():
            init.trunc_normal_(cast("Tensor", head.weight), std=self.config.head_std)
        if self.config.factors == "ab":
            for head in self.b_heads.children():
                init.zeros_(cast("Tensor", head.weight))
        for name in ("dictionaries", "b_dictionaries"):
            for dictionary in getattr(self, name, nn.ParameterDict()).values():
                # D C is then as large as what a linear head makes.
                init.normal_(dictionary, std=self.config.dictionary_size**-0.5)
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
        kind = memory.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):  # once, not anew for the keys and values of every block
            memory = memory.to(torch.get_autocast_dtype(kind))
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
        rows = [
            torch.cat([factors[site.layer, target][0] for target in site.targets], dim=-1).flatten(1)
            for site in self.layout.sites
        ]
        if self.config.factors == "ab":
            rows += [factors[place][1].flatten(1) for place in self.layout.b_offsets]
        return self.weights_from(torch.cat(rows, dim=1))

    def weights_from(self, values: Tensor) -> PerceptualWeights:
        """Wrap values `[batch, layout.numel]`, or of several images a row, with this generator's layout and B."""
        images = max(1, values.shape[-1] // self.layout.numel)
        if self.config.factors == "ab":
            return PerceptualWeights(values, self.layout.of(images), {})
        b = {(p.layer, p.target): self.b[_place_name(p.layer, p.target)] for p in self.layout.places}
        if values.dtype != self.dtype:
            b = {place: factor.to(values.dtype) for place, factor in b.items()}
        return PerceptualWeights(values, self.layout, b)

    def _factors(self, codes: Tensor) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
        """A `[image, in_dim, rank]` of every place, and B, `[rank, out_dim]` or with `ab` `[image, rank, out_dim]`.

        Each head runs, and is read, once for all its layers.
        """
        factors: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        for row, target in enumerate(self.targets):
            code = self.head_norms[target](codes[:, row])
            generated = self._generated("a", target, code)
            transposed = self._generated("b", target, code) if self.config.factors == "ab" else {}
            for column, layer in enumerate(self.layers):
                a = generated[layer]
                if self.config.norms:
                    a = a * self.scales[row, column]
                b = self.b[_place_name(layer, target)]
                if transposed:  # the static pair, if there is one, has the last rows of B for itself
                    b = b + F.pad(transposed[layer].mT, (0, 0, 0, self.config.static_rank))
                factors[layer, target] = (self._with_static(a, layer, target), b)
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


def _place_name(layer: int, target: str) -> str:
    return f"layer{layer}_{target}"


def _head_name(target: str, width: int) -> str:
    return f"{target}_{width}"
