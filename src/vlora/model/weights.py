"""The two forms of a perceived image: visual parameters, and the perceptual weights made from them.

    VisualParameters   [batch, targets, layers, dim]   compact (about 40 KiB at 7B scale), what an album keeps
    PerceptualWeights  one pair per (layer, target)    A [batch, in_dim, rank], B [rank, out_dim] shared by all
                                                       images; with factors `b` A [in_dim, rank] is shared and B
                                                       [batch, rank, out_dim]; with `ab` nothing is

Both are batch first, can be indexed by sample, stacked, moved, counted and saved. Everything upstream makes
`PerceptualWeights`, everything downstream uses them.

How the factors lie in memory. What one sample generated is one row of `values`. Inside it, the A of the targets of
a layer that read the same input lie side by side, so that one batched matmul serves them all; then come the B. What
images share is not in it. With factors `ab`:

    values[i] = | layer 3: A_q A_k A_v | layer 3: A_o | layer 3: A_gate A_up | layer 7: ... | layer 3: B_q | B_k | ...

A row of zeros is a row without an image: its ΔW is exactly zero, so that row equals the plain language model.

Several images in one row wear the sum of their ΔW, which is the factors side by side:

    [A₁ A₂] [B₁; B₂] = A₁ B₁ + A₂ B₂    with a shared B: (A₁ + A₂) B, with a shared A: A (B₁ + B₂), and nothing grows
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError, InputError

# Canonical order, and the input that each target reads. Targets of one input share one batched matmul.
INPUT_OF = {
    "q": "attention",
    "k": "attention",
    "v": "attention",
    "o": "output",
    "gate": "mlp",
    "up": "mlp",
    "down": "down",
    "mlp": "mlp",
}
TARGETS = tuple(INPUT_OF)
# `mlp` bypasses three matrices and a non-linearity: no single matrix can take it up.
MERGEABLE = tuple(target for target in TARGETS if target != "mlp")

# What the image generates: A, which reads, B, which writes, or both factors.
FACTORS = ("a", "b", "ab")

Index = int | slice | Sequence[int] | Tensor


class Place(NamedTuple):
    """Where one ΔW goes, and its shape."""

    layer: int
    target: str
    in_dim: int
    out_dim: int


@dataclass(frozen=True)
class Site:
    """The targets of one layer that read one input; their A lie side by side, if generated from `offset` on."""

    layer: int
    input: str
    targets: tuple[str, ...]
    in_dim: int
    offset: int


@dataclass(frozen=True)
class Layout:
    """Which factors there are, their shapes, and where they lie in a row of values.

    Args:
        places: every ΔW, in any order.
        rank: columns of each A (generated and static ones together).
        scale: what `(x A) B` is multiplied by, `alpha / rank` in the paper's words; of several images in one row
            too, whose factors have more columns.
        factors: those that lie in the row, `a`, `b` or `ab`; the other one is shared by all images.
    """

    places: tuple[Place, ...]
    rank: int
    scale: float
    factors: str = "a"

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Sites in the order of layers, then of inputs as a block computes them."""
        groups: dict[tuple[int, str], list[Place]] = {}
        for place in sorted(self.places, key=lambda p: (p.layer, TARGETS.index(p.target))):
            groups.setdefault((place.layer, INPUT_OF[place.target]), []).append(place)
        sites: list[Site] = []
        offset = 0
        for (layer, name), members in groups.items():
            in_dim = members[0].in_dim
            sites.append(Site(layer, name, tuple(p.target for p in members), in_dim, offset))
            offset += in_dim * self.rank * len(members) if "a" in self.factors else 0
        return tuple(sites)

    @property
    def shared(self) -> str:
        """The factor that all images share: `b`, `a`, or, with `ab`, none: empty."""
        return "".join(factor for factor in "ab" if factor not in self.factors)

    def shared_shape(self, place: Place) -> tuple[int, int]:
        """Of the shared factor of a place."""
        return (place.in_dim, self.rank) if self.shared == "a" else (self.rank, place.out_dim)

    @cached_property
    def numel(self) -> int:
        """Length of a row of values: the numbers that one image generates."""
        return sum(self.pieces)

    @cached_property
    def b_offsets(self) -> Mapping[tuple[int, str], int]:
        """Where the generated B of each (layer, target) begins: behind all generated A, in the order of the sites."""
        offsets: dict[tuple[int, str], int] = {}
        offset = self.rank * sum(place.in_dim for place in self.places) if "a" in self.factors else 0
        for site in self.sites:
            for target in site.targets:
                offsets[site.layer, target] = offset
                offset += self.rank * self.place_of[site.layer, target].out_dim
        return offsets

    def of(self, images: int) -> Layout:
        """The layout of so many images in one row: with a shared factor no other than that of one."""
        return replace(self, rank=self.rank * images) if self.factors == "ab" and images > 1 else self

    @cached_property
    def pieces(self) -> tuple[int, ...]:
        """Lengths of what lies in a row, one after the other: A of every site, then every B, as far as generated."""
        a = [site.in_dim * self.rank * len(site.targets) for site in self.sites if "a" in self.factors]
        return (*a, *(self.rank * self.place_of[place].out_dim for place in self.b_offsets if "b" in self.factors))

    @cached_property
    def place_of(self) -> Mapping[tuple[int, str], Place]:
        """Place by (layer, target)."""
        return {(place.layer, place.target): place for place in self.places}

    @cached_property
    def sites_of(self) -> Mapping[int, tuple[Site, ...]]:
        """Sites by layer."""
        layers = sorted({site.layer for site in self.sites})
        return {layer: tuple(site for site in self.sites if site.layer == layer) for layer in layers}

    def site_of(self, layer: int, target: str) -> tuple[Site, int]:
        """The site of a target, and the target's position in it.

        Raises:
            InputError: no weights at that layer and target.
        """
        for site in self.sites_of.get(layer, ()):
            if target in site.targets:
                return site, site.targets.index(target)
        have = ", ".join(f"{layer}.{target}" for layer, target in self.place_of)
        raise InputError(f"There are no perceptual weights at layer {layer}, target {target!r}; there are: {have}.")


class VisualParameters:
    """Images in their compact form.

    Args:
        values: `[batch, targets, layers, dim]`.
    """

    def __init__(self, values: Tensor) -> None:
        if values.ndim != 4:
            raise InputError(f"Visual parameters have shape [batch, targets, layers, dim]; got {tuple(values.shape)}.")
        self.values = values

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, index: Index) -> VisualParameters:
        return VisualParameters(self.values[_batch_index(index, len(self))])

    def __repr__(self) -> str:
        return f"VisualParameters({_shape(self.values)}, {self.values.dtype}, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes of all samples together."""
        return self.values.nbytes

    def to(self, *args: Any) -> VisualParameters:
        """Move or convert, as `Tensor.to`."""
        return VisualParameters(self.values.to(*args))

    @staticmethod
    def stack(parts: Sequence[VisualParameters]) -> VisualParameters:
        """Join along the batch."""
        return VisualParameters(torch.cat([part.values for part in parts]))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        save_file({"visual_parameters": self.values.contiguous()}, path)

    @staticmethod
    def load(path: str | Path) -> VisualParameters:
        """Read what `save` wrote.

        Raises:
            CheckpointError: not such a file, or a damaged one.
        """
        tensors, _ = _read(path)
        if "visual_parameters" not in tensors:
            raise CheckpointError(f"{path} holds no visual parameters; it holds {', '.join(tensors) or 'nothing'}.")
        return VisualParameters(tensors["visual_parameters"])


class PerceptualWeights:
    """Low-rank weights of a batch of images: ΔW = scale · A B for every (layer, target).

    Args:
        values: every generated factor, `[batch, layout.numel]`.
        layout: what lies where.
        shared: of each (layer, target) the factor that the batch shares: B `[rank, out_dim]`, with factors `b`
            A `[in_dim, rank]`; empty with `ab`.
    """

    def __init__(self, values: Tensor, layout: Layout, shared: Mapping[tuple[int, str], Tensor]) -> None:
        if values.ndim != 2 or values.shape[1] != layout.numel:
            raise InputError(
                f"These perceptual weights need values of shape [batch, {layout.numel}]; got {tuple(values.shape)}."
            )
        self.values = values
        self.layout = layout
        self.shared = shared
        self._pieces: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, index: Index) -> PerceptualWeights:
        return PerceptualWeights(self.values[_batch_index(index, len(self))], self.layout, self.shared)

    def __repr__(self) -> str:
        return (
            f"PerceptualWeights({len(self)} x {len(self.layout.places)} pairs, rank {self.layout.rank}, "
            f"{self.values.dtype}, {self.nbytes} bytes)"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of what the images generated (a shared factor is not counted: it belongs to the model)."""
        return self.values.nbytes

    def site(self, site: Site) -> Tensor:
        """A of all targets of a site side by side, `[batch, in_dim, targets * rank]`, a view; shared, without batch."""
        if self.layout.shared == "a":
            return torch.cat([self.shared[site.layer, target] for target in site.targets], dim=-1)
        width = len(site.targets) * self.layout.rank
        return self._piece(site.offset, site.in_dim * width).view(len(self), site.in_dim, width)

    def factors(self, layer: int, target: str) -> tuple[Tensor, Tensor]:
        """A `[batch, in_dim, rank]` and B `[batch, rank, out_dim]`, the scale not applied.

        The one that is shared has no batch.
        """
        site, position = self.layout.site_of(layer, target)
        rank = self.layout.rank
        return self.site(site)[..., position * rank : (position + 1) * rank], self.b_of(layer, target)

    def pair(self, layer: int, target: str) -> tuple[Tensor, Tensor]:
        """A `[in_dim, rank]` and B `[rank, out_dim]` of the first sample, the scale not applied."""
        a, b = self.factors(layer, target)
        return a if a.ndim == 2 else a[0], b if b.ndim == 2 else b[0]

    def b_of(self, layer: int, target: str) -> Tensor:
        """B: `[rank, out_dim]`, or, where images generate it, a view `[batch, rank, out_dim]`."""
        if self.layout.shared == "b":
            return self.shared[layer, target]
        rank, width = self.layout.rank, self.layout.place_of[layer, target].out_dim
        offset = self.layout.b_offsets[layer, target]
        return self._piece(offset, rank * width).view(len(self), rank, width)

    def _piece(self, offset: int, length: int) -> Tensor:
        """A part of every row.

        Cut out one by one, each part would have a gradient as long as the whole row, zero but for that part, and a
        training step would add up as many of them as there are parts. Cut up once, all have one between them.
        """
        if not (self.values.requires_grad and torch.is_grad_enabled()):
            return self.values[:, offset : offset + length]
        if not self._pieces:
            begins = [0, *accumulate(self.layout.pieces)][:-1]
            self._pieces = dict(zip(begins, self.values.split(self.layout.pieces, dim=1), strict=True))
        return self._pieces[offset]

    def delta(self, layer: int, target: str) -> Tensor:
        """ΔW as a dense matrix, `[batch, in_dim, out_dim]`: y = x W + x ΔW (W as `[in_dim, out_dim]`)."""
        a, b = self.factors(layer, target)
        return self.layout.scale * (a @ b.to(a.dtype))

    def rows(self, index: Tensor) -> PerceptualWeights:
        """Weights for each row of a batch of texts.

        Args:
            index: `[rows]` or `[rows, images]`, the images each row looks at; -1 means none. A row with several
                wears the sum of their ΔW, in whatever order they are named; a row with none stays bare.
        """
        index = index.to(self.values.device).reshape(len(index), -1)  # a row's ids may lie elsewhere than its weights
        # `where`, not a product: a bare row stays exactly zero even if an image's weights are not finite.
        picked = self.values[index.clamp_min(0)].where(index.ge(0)[..., None], 0)
        images = index.shape[1]
        layout = self.layout.of(images)
        if images == 1 or layout.shared:
            return PerceptualWeights(picked.sum(1) if images > 1 else picked[:, 0], layout, self.shared)
        return PerceptualWeights(self._side_by_side(picked), layout, self.shared)

    def split(self, sizes: Sequence[int]) -> list[PerceptualWeights]:
        """Parts of so many samples, in their order."""
        return [PerceptualWeights(values, self.layout, self.shared) for values in self.values.split(list(sizes))]

    def composed(self) -> PerceptualWeights:
        """All images of this batch in one row: its ΔW is the sum of theirs."""
        return self.rows(torch.arange(len(self))[None])

    def _side_by_side(self, picked: Tensor) -> Tensor:
        """`[rows, images, numel]` with factors `ab` -> `[rows, images * numel]`: ranks of all images side by side."""
        layout, (rows, images, _) = self.layout, picked.shape
        parts: list[Tensor] = []
        for site in layout.sites:
            a = picked[..., site.offset : site.offset + site.in_dim * len(site.targets) * layout.rank]
            a = a.view(rows, images, site.in_dim, len(site.targets), layout.rank)
            parts.append(a.permute(0, 2, 3, 1, 4).flatten(1))
        for place, offset in layout.b_offsets.items():
            b = picked[..., offset : offset + layout.rank * layout.place_of[place].out_dim]
            parts.append(b.flatten(1))  # [images, rank, out_dim]: rows of B below one another
        return torch.cat(parts, dim=1)

    def to(self, *args: Any) -> PerceptualWeights:
        """Move or convert, as `Tensor.to`; what is shared goes along."""
        shared = {place: factor.to(*args) for place, factor in self.shared.items()}
        return PerceptualWeights(self.values.to(*args), self.layout, shared)

    @staticmethod
    def stack(parts: Sequence[PerceptualWeights]) -> PerceptualWeights:
        """Join along the batch.

        Raises:
            InputError: parts of different layouts.
        """
        first = parts[0]
        if any(part.layout != first.layout for part in parts):
            raise InputError("Perceptual weights of different models cannot be joined in one batch.")
        return PerceptualWeights(torch.cat([part.values for part in parts]), first.layout, first.shared)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with the factors and their layout."""
        kind = self.layout.shared
        tensors = {f"{kind}.{layer}.{target}": x.detach().contiguous() for (layer, target), x in self.shared.items()}
        tensors["values"] = self.values.detach().contiguous()
        save_file(tensors, path, metadata={"layout": json.dumps(asdict(self.layout))})

    @staticmethod
    def load(path: str | Path) -> PerceptualWeights:
        """Read what `save` wrote.

        Raises:
            CheckpointError: not such a file, or a damaged one.
        """
        tensors, metadata = _read(path)
        if "layout" not in metadata or "values" not in tensors:
            raise CheckpointError(f"{path} holds no perceptual weights; it holds {', '.join(tensors) or 'nothing'}.")
        try:
            fields = json.loads(metadata["layout"])
            places = tuple(Place(*place) for place in fields["places"])
            layout = Layout(places, fields["rank"], fields["scale"], fields.get("factors", "a"))
            if layout.factors not in FACTORS:
                raise ValueError(layout.factors)
            kind = layout.shared
            shared = {place: tensors[f"{kind}.{place[0]}.{place[1]}"] for place in layout.place_of if kind}
            return PerceptualWeights(tensors["values"], layout, shared)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: its layout does not fit what it holds.") from error


def _batch_index(index: Index, size: int) -> Index:
    """An integer keeps the batch dimension, so that every result is a batch."""
    if isinstance(index, Tensor) and index.ndim == 0 and index.dtype != torch.bool:
        index = int(index)
    if isinstance(index, int):
        if not -size <= index < size:  # also what ends a loop over the samples
            raise IndexError(f"There is no sample {index} in a batch of {size}.")
        return slice(index, None if index == -1 else index + 1)
    if isinstance(index, slice | Tensor):
        return index
    return list(index)


def _shape(values: Tensor) -> str:
    return " x ".join(str(size) for size in values.shape)


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: it is damaged or of another kind."
        ) from error
