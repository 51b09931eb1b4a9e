"""Losses on logits: cross-entropy, or binary cross-entropy when a case can have several classes.

They are computed in float32 whatever the run's precision, since logits, weights and soft targets may come in different
types: true half precision turns modules and batches into its type, but not what validation has gathered.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.layers.counted_mean import counted_mean


class CrossEntropy(nn.Module):
    """Multi-class cross-entropy, averaged over cases.

    Args:
        weight_K: Weight of each class; null: 1.
        label_smoothing: Share of the target spread over all classes.
    """

    def __init__(self, weight_K: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight_K, persistent=False)
        self.weight: Tensor | None
        self.label_smoothing = label_smoothing

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each case, (B, K) and (B,) int64 to (B,)."""
        weight = _wide(self.weight)
        return F.cross_entropy(
            logits.float(), target, weight=weight, label_smoothing=self.label_smoothing, reduction="none"
        )

    def forward(self, logits: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Average over the cases where ``present`` (B,) is true; 0 if there is none."""
        return average(self.each(logits, target), present)


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of each class, averaged over cases and classes.

    Args:
        weight_K: Weight of each class's positive cases; null: 1.
    """

    def __init__(self, weight_K: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight_K, persistent=False)
        self.weight: Tensor | None

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return each case's soft-target cross-entropy, (B,), by which EI's code compares modalities on MRNet."""
        return F.cross_entropy(logits.float(), target.float(), reduction="none")

    def forward(self, logits: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Average over classes and over the cases where ``present`` (B,) is true; 0 if there is none."""
        loss = F.binary_cross_entropy_with_logits(
            logits.float(), target.float(), pos_weight=_wide(self.weight), reduction="none"
        )
        return average(loss.mean(dim=1), present)


def average(loss_B: Tensor, present: Tensor | None) -> Tensor:
    """Average over the cases that are present in all processes; without ``present`` these have equally many."""
    return loss_B.mean() if present is None else counted_mean(loss_B, present)


def _wide(weight_K: Tensor | None) -> Tensor | None:
    return None if weight_K is None else weight_K.float()
