"""One vector of a case out of each modality's last token, as a decoder is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn


class DecoderReadout(nn.Module):
    """Final norm, a token, ``tanh(W h + b)`` shared by the modalities, their sum, dropout (arXiv 2412.01306, code).

    The norm is a fresh RMSNorm. An absent modality is left out of the sum.

    Args:
        width: D.
        token: ``last``: the last token that is no padding; ``mean``: the mean over those.
        vocabulary: V, to go through it before: a linear layer D → V, and W is V → D; None: W is D → D.
        dropout: Share of the sum dropped in training.
    """

    def __init__(
        self, width: int, *, token: Literal["last", "mean"], vocabulary: int | None = None, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.token = token
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.to_vocabulary = nn.Identity() if vocabulary is None else nn.Linear(width, vocabulary)
        self.pooler = nn.Linear(vocabulary or width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, sequences: Mapping[str, tuple[Tensor, Tensor | None]], present_BM: Tensor) -> Tensor:
        """Return a vector of each case, (B, D).

        Args:
            sequences: Tokens (B, N, D), finite, and mask (B, N), False at padding, by modality.
            present_BM: Which modalities a case has, in the order of ``sequences``.
        """
        vectors = [self._vector(values, mask) for values, mask in sequences.values()]
        pooled_BMD = torch.tanh(self.pooler(self.to_vocabulary(torch.stack(vectors, dim=1))))
        out: Tensor = self.dropout((pooled_BMD * present_BM[..., None]).sum(dim=1))
        return out

    def _vector(self, values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Return one token of each sequence behind the norm, (B, D)."""
        values_BND = values_BND.to(self.norm.weight.dtype)
        if self.token == "last":
            return self.norm(last_token(values_BND, mask_BN))  # type: ignore[no-any-return]
        normed_BND: Tensor = self.norm(values_BND)
        if mask_BN is None:
            return normed_BND.mean(dim=1)
        weight_BN1 = mask_BN[..., None].to(normed_BND.dtype)
        return (normed_BND * weight_BN1).sum(dim=1) / weight_BN1.sum(dim=1).clamp(min=1)


def last_token(values_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
    """Return the last token of each row that is no padding, (B, D); of a row of nothing but padding, its last."""
    if mask_BN is None:
        return values_BND[:, -1]
    behind_B = mask_BN.flip(1).int().argmax(dim=1)
    place_B = mask_BN.shape[1] - 1 - behind_B
    return values_BND.gather(1, place_B[:, None, None].expand(-1, 1, values_BND.shape[2]))[:, 0]
