"""Which token of a decoder may attend to which: padding, causality and modality-mutual attention."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor


class Role(IntEnum):
    """What a token is to a decoder that reads pictures and a prompt and may have to answer."""

    IMAGE = 0
    PROMPT = 1
    ANSWER = 2


def decoder_mask(
    roles_BN: Tensor, keys_BN: Tensor | None = None, *, causal: bool = True, mutual: bool = False
) -> Tensor:
    """Return (B, 1, N, N) bool, True where the query (dim 2) may attend to the key (dim 3).

    Causal: a token sees itself and what stands before it. Mutual on top of it (modality-mutual attention of "Seeing is
    Understanding", AKI, arXiv 2503.02597): an image token also sees prompt text that stands behind it, so that a
    picture in front of its question is read with the question in mind; text stays causal. An image token never sees an
    answer. Ours, where a conversation has several turns: of prompt text that stands behind it, an image token sees none
    that has an answer before it, since that text has read the answer. So no state before an answer ever depends on it,
    however many layers there are. Earlier prompt text does learn of later prompt text, through the images.

    Args:
        roles_BN: (B, N) int, each token's ``Role``; matters with ``mutual`` alone.
        keys_BN: (B, N) bool, False where a token must not be attended to; None: everywhere True. A query all of whose
            keys are closed reads nothing.
        causal: Whether text and images are read from left to right; without, everything open is seen.
        mutual: Whether images see prompt text behind them; needs ``causal``.
    """
    rows, count = roles_BN.shape
    allowed = torch.ones(rows, count, count, dtype=torch.bool, device=roles_BN.device)
    if causal:
        allowed = allowed.tril()
    if causal and mutual:
        answers = roles_BN == Role.ANSWER
        first_turn = (roles_BN == Role.PROMPT) & (answers.cumsum(dim=1) == 0)
        images_BN1 = (roles_BN == Role.IMAGE)[:, :, None]
        allowed = (allowed | (images_BN1 & first_turn[:, None])) & ~(images_BN1 & answers[:, None])
    if keys_BN is not None:
        allowed = allowed & keys_BN[:, None]
    return allowed[:, None]


def encoder_roles(is_image: Sequence[bool], like_BND: Tensor, appended: int) -> Tensor:
    """Return the roles (B, N) of an encoder's sequences: its own tokens by view, those of a strategy as prompt text.

    Args:
        is_image: Whether the own tokens of each view are images; the rows are those of the views in equal parts.
        like_BND: The sequences.
        appended: How many tokens at the end a strategy has put there.
    """
    rows, count = like_BND.shape[:2]
    images = torch.tensor(is_image, device=like_BND.device).repeat_interleave(rows // len(is_image))
    is_own = torch.arange(count, device=like_BND.device) < count - appended
    return torch.where(images[:, None] & is_own, int(Role.IMAGE), int(Role.PROMPT))
