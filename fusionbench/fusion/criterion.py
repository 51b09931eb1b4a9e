"""Losses on logits: cross-entropy, or binary cross-entropy when a case can have several classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        return F.cross_entropy(
            logits, target, weight=self.weight, label_smoothing=self.label_smoothing, reduction="none"
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
        return F.cross_entropy(logits, target, reduction="none")

    def forward(self, logits: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Average over classes and over the cases where ``present`` (B,) is true; 0 if there is none."""
        loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.weight, reduction="none")
        return average(loss.mean(dim=1), present)


def average(loss_B: Tensor, present: Tensor | None) -> Tensor:
    """Average over the cases that are present, without a branch on how many there are."""
    if present is None:
        return loss_B.mean()
    weight = present.to(loss_B.dtype)
    return torch.where(present, loss_B, torch.zeros_like(loss_B)).sum() / weight.sum().clamp(min=1)
