"""The training loss: cross-entropy at supervised positions only, every answer as heavy as its row."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # label of a position without supervision, the convention of torch's cross-entropy


def supervised_loss(
    hidden: Tensor, labels: Tensor, logits_of: Callable[[Tensor], Tensor], weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and loss of the supervised positions; no others are computed.

    Args:
        hidden: `[rows, text, hidden]`, the last hidden states.
        labels: `[rows, text]`, `IGNORED` where nothing is supervised.
        logits_of: the language model's head, `[supervised, hidden]` -> `[supervised, vocabulary]`.
        weights: `[rows]`, what the mean of each row counts; None means that all rows with supervised positions count
            the same, and the loss is their mean.

    Returns:
        Logits `[supervised, vocabulary]`, and the loss: the sum over rows of weight times the mean over the row's
        supervised positions.
    """
    targets = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]  # position t predicts label t + 1
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    logits = logits_of(hidden[rows, columns])
    losses = F.cross_entropy(logits.float(), targets[rows, columns], reduction="none")
    per_row = losses.new_zeros(len(labels)).index_add(0, rows, losses)
    counts = (targets != IGNORED).sum(1)
    means = per_row / counts.clamp_min(1)
    if weights is None:
        return logits, means.sum() / counts.gt(0).sum().clamp_min(1)
    return logits, (means * weights.to(means)).sum()
