"""Muon: a matrix takes steps whose singular values are all about one; what is no matrix takes AdamW's.

A gradient of a linear layer is mostly a few directions. Muon (Jordan et al. 2024) gives all of them the same length, so
rare ones are learned too. torch has it for matrices alone, and in bfloat16, for which most CPUs have no units. Here it
is one optimiser with AdamW, and works in float32 on the smaller side of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Jordan's quintic: five rounds bring singular values of 2e-3 of the norm and more to between 0.68 and 1.21."""
ROUNDS = 5
MOMENTUM = 0.95
RMS = 0.2
"""Root mean square of a step at rate 1: about AdamW's (Liu et al. 2025, section 2.2), so that both share a rate."""


class Muon(torch.optim.Optimizer):
    """Muon for groups that are marked `orthogonal`, AdamW for the others.

        m <- 0.95 m + 0.05 g,   W <- (1 - rate · decay) W - 0.2 sqrt(max(out, in)) · rate · O(0.95 m + 0.05 g)

    with O of `orthogonal`. A matrix keeps one moment in place of two.

    Args:
        groups: of parameters, each with its `lr`, `weight_decay` and `orthogonal`, a bool. Parameters of those that are
            so are `[out, in]`.
        betas: of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas, "eps": 1e-8, "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of all groups; `closure` is not taken."""
        for group in self.param_groups:
            members = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonal"]:
                for weight in members:
                    self._step_matrix(weight, group)
            elif members:
                self._step_others(members, group)

    def _step_matrix(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        gradient = cast("Tensor", weight.grad)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        step = orthogonal(gradient.lerp(momentum, MOMENTUM))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(step, alpha=-group["lr"] * RMS * max(weight.shape) ** 0.5)

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        adamw(
            parameters,
            [cast("Tensor", parameter.grad) for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular vectors and singular values near one.

    A round of Newton-Schulz is X <- X (a + b XᵀX + c (XᵀX)²). All rounds are polynomials of the first XᵀX, so they are
    taken on it alone, `[n, n]` with n the smaller side, and X is multiplied once.

    Args:
        matrix: `[out, in]`; zeros stay zeros.
    """
    tall = matrix.shape[0] >= matrix.shape[1]
    x = matrix if tall else matrix.T
    x = x.float() / x.float().norm().clamp_min(1e-7)
    gram = x.T @ x
    product = factor = _factor(gram)
    for _ in range(ROUNDS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = product @ factor
    x = (x @ product).to(matrix.dtype)
    return x if tall else x.T


def _factor(gram: Tensor) -> Tensor:
    """What a round multiplies by."""
    a, b, c = COEFFICIENTS
    factor = b * gram + c * (gram @ gram)
    factor.diagonal().add_(a)
    return factor
