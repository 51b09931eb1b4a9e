"""Weighing experts for one modality each and one that reads all of them, where a case may lack some modalities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def joined(vectors: Sequence[Tensor], present_BM: Tensor) -> Tensor:
    """Put the modalities' vectors (B, D_m) side by side, zeros for an absent one; float (B, ΣD_m)."""
    return torch.cat([vector * present_BM[:, m, None] for m, vector in enumerate(vectors)], dim=-1)


def expert_weights(scores_BE: Tensor, present_BE: Tensor) -> Tensor:
    """Softmax over the experts that a case has; the others weigh 0.

    Args:
        scores_BE: Logits of E experts, that of all modalities in the last column.
        present_BE: Bool (B, E - 1), whether a case has the modality of each of the other experts; the last expert is
            always there, since it reads whatever is.

    Returns:
        Weights in 0 to 1, (B, E), that sum to 1 in each row.
    """
    there = torch.cat([present_BE, torch.ones_like(present_BE[:, :1])], dim=1)
    return scores_BE.masked_fill(~there, float("-inf")).softmax(dim=-1)


def modality_weights(weights_BE: Tensor, owners_E: Tensor, present_BM: Tensor) -> Tensor:
    """Say how much each modality counted: its expert's weight and an equal part of that of the expert that reads all.

    Args:
        weights_BE: As ``expert_weights`` returns them.
        owners_E: Int64 (E - 1), the index of the modality of each expert but the last.
        present_BM: Which modalities a case has.

    Returns:
        (B, M), summing to 1 in each row, 0 for an absent modality.
    """
    equal_BM = present_BM / present_BM.sum(dim=1, keepdim=True).clamp(min=1)
    return (weights_BE[:, -1:] * equal_BM.to(weights_BE.dtype)).index_add(1, owners_E, weights_BE[:, :-1])
