"""Loss and score of predicted masks, over those cases that have a mask."""

from __future__ import annotations

import torch
from segmentation_models_pytorch.losses import DiceLoss
from segmentation_models_pytorch.metrics import f1_score, get_stats
from torch import Tensor
from torch.nn import functional as F

from fusionbench.errors import UserError
from fusionbench.layers.counted_mean import counted


def segmentation_loss(logits_B1HW: Tensor, mask_B1HW: Tensor, present_B: Tensor) -> Tensor:
    """Return Dice loss + binary cross-entropy, the mean over the cases that have a mask; 0 if none has.

    Soft Dice is taken of each case, so that large masks don't outweigh small ones; an empty mask has cross-entropy
    alone, since its Dice is undefined. Computed in float32. Cases of all processes count alike, so all must call it.

    Args:
        logits_B1HW: The prediction.
        mask_B1HW: 0 or 1; anything where there is none.
        present_B: bool, which cases have a mask.

    Raises:
        UserError: The mask is of another size.
    """
    logits, mask = _paired(logits_B1HW, mask_B1HW, present_B)
    # As channels of one picture each case gets a Dice of its own; those without a mask are empty and count 0.
    dice: Tensor = DiceLoss("multilabel")(logits.transpose(0, 1), mask.transpose(0, 1)) * len(logits)
    entropy_B = F.binary_cross_entropy_with_logits(logits, mask, reduction="none").flatten(1).mean(dim=1)
    return (dice + (entropy_B * present_B).sum()) / counted(present_B)


@torch.no_grad()
def dice_scores(logits_B1HW: Tensor, mask_B1HW: Tensor, present_B: Tensor) -> Tensor:
    """Return each case's Dice score (B,) at probability 0.5, nan where it has no mask; both empty is 1.

    Args:
        logits_B1HW: The prediction.
        mask_B1HW: 0 or 1; anything where there is none.
        present_B: bool, which cases have a mask.

    Raises:
        UserError: The mask is of another size.
    """
    logits, mask = _paired(logits_B1HW, mask_B1HW, present_B)
    counts = get_stats((logits > 0).long(), mask.long(), mode="binary")
    scores: Tensor = f1_score(*counts, reduction="none", zero_division=1.0)
    return scores[:, 0].to(logits.device).masked_fill(~present_B, torch.nan)


def _paired(logits_B1HW: Tensor, mask_B1HW: Tensor, present_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float32, with zeros for cases without a mask, which may hold anything."""
    if mask_B1HW.shape != logits_B1HW.shape:
        given, wanted = (" x ".join(map(str, x.shape[1:])) for x in (mask_B1HW, logits_B1HW))
        raise UserError(
            f"a mask is {given} (channels, height, width), but its prediction {wanted}: give masks the size of the "
            "pictures that they belong to"
        )
    absent = ~present_B[:, None, None, None]
    return logits_B1HW.float().masked_fill(absent, 0), mask_B1HW.float().masked_fill(absent, 0)
