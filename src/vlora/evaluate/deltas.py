"""Size and rank of each ΔW = scale · A B, from its factors: the dense matrix is never made.

    A = Q_a R_a,  Bᵀ = Q_b R_b   ──►   A B = Q_a (R_a R_bᵀ) Q_bᵀ

Q_a and Q_b turn without stretching, so A B has the singular values of R_a R_bᵀ, a matrix of rank x rank.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..model import PerceptualWeights
from ..model.inject import MODULE_OF


@dataclass(frozen=True)
class Delta:
    """What one image does to one place.

    Args:
        layer: decoder block.
        target: place in it.
        norm: Frobenius norm of ΔW.
        relative_norm: over that of the base weight; None for a bypass, which has none.
        stable_rank: squared norm over squared largest singular value; never above the rank.
        effective_rank: exp of the entropy of the singular values, which sum to one; 0 if ΔW is zero.
    """

    layer: int
    target: str
    norm: float
    relative_norm: float | None
    stable_rank: float
    effective_rank: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def measure(weights: PerceptualWeights, language_model: nn.Module) -> list[Delta]:
    """Measure every ΔW of the first sample.

    Args:
        weights: one image.
        language_model: the decoder that wears them, without its head.
    """
    deltas: list[Delta] = []
    with torch.no_grad():
        for layer, target, _, _ in sorted(weights.layout.places, key=lambda p: p.layer):
            values = weights.layout.scale * singular_values(*weights.pair(layer, target))
            base = base_norm(language_model, layer, target)
            norm = float(values.norm())
            relative = norm / base if base else None
            deltas.append(Delta(layer, target, norm, relative, stable_rank(values), effective_rank(values)))
    return deltas


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """Singular values of A B, in float64.

    Args:
        a: `[in_dim, rank]`.
        b: `[rank, out_dim]`.

    Returns:
        `[rank]` at most, largest first; NaN where a factor is not finite.
    """
    # On the CPU: not every accelerator knows float64.
    left, right = (torch.linalg.qr(x.detach().to("cpu", torch.float64), mode="r").R for x in (a, b.T))
    product = left @ right.T
    if not product.isfinite().all():  # damaged weights; their decomposition would fail
        return torch.full((min(product.shape),), torch.nan, dtype=product.dtype)
    return torch.linalg.svdvals(product)


def stable_rank(values: Tensor) -> float:
    """Squared Frobenius norm over squared spectral norm, from singular values."""
    largest = float(values.max())
    return float((values / largest).square().sum()) if largest else 0.0


def effective_rank(values: Tensor) -> float:
    """Exp of the entropy of the normalised singular values: how many directions matter."""
    total = float(values.sum())
    if total <= 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def base_norm(language_model: nn.Module, layer: int, target: str) -> float | None:
    """Frobenius norm of the weight that a target adds to; a bypass has none, nor a quantised weight one to read."""
    weight = getattr(language_model.get_submodule(f"layers.{layer}.{MODULE_OF[target]}"), "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return None
    return float(weight.detach().float().norm())
