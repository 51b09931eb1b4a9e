"""Dice and cross-entropy of masks against plain loops, and cases without a mask."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fusionbench.errors import UserError
from fusionbench.layers.segmentation_loss import dice_scores, segmentation_loss


def cases() -> tuple[Tensor, Tensor, Tensor]:
    """Return four predictions: two with masks, one without any, one whose mask is empty."""
    logits, mask = torch.randn(4, 1, 3, 5), (torch.rand(4, 1, 3, 5) > 0.4).float()
    mask[3] = 0
    return logits, mask, torch.tensor([True, True, False, True])


def plain_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return one case's 1 - 2 Σ p y / (Σ p + Σ y), where there is any y, plus the mean cross-entropy."""
    p, y = torch.sigmoid(logits.flatten()), mask.flatten()
    entropy = -sum(b * a.log() + (1 - b) * (1 - a).log() for a, b in zip(p, y, strict=True)) / len(y)
    dice = 1 - 2 * (p * y).sum() / (p.sum() + y.sum()) if y.any() else 0
    return entropy + dice


def test_the_loss_is_the_mean_over_the_cases_with_a_mask() -> None:
    logits, mask, present = cases()
    wanted = sum(plain_loss(logits[row], mask[row]) for row in (0, 1, 3)) / 3
    torch.testing.assert_close(segmentation_loss(logits, mask, present), wanted)


def test_what_stands_in_the_place_of_a_mask_counts_nothing() -> None:
    logits, mask, present = cases()
    wanted = segmentation_loss(logits, mask, present)
    logits, mask = logits.clone().requires_grad_(), mask.clone()
    logits.data[2], mask[2] = math.nan, math.nan
    loss = segmentation_loss(logits, mask, present)
    loss.backward()
    assert torch.equal(loss, wanted)
    assert not logits.grad[2].any()
    assert all(logits.grad[row].isfinite().all() and logits.grad[row].any() for row in (0, 1, 3))
    assert torch.isnan(dice_scores(logits, mask, present)).tolist() == [False, False, True, False]


def test_a_batch_without_masks_gives_zero_and_zero_gradients() -> None:
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_score_counts_pixels() -> None:
    logits, mask, present = cases()
    scores = dice_scores(logits, mask, present)
    for row in (0, 1, 3):
        said, true = (logits[row] > 0).flatten().tolist(), (mask[row] > 0).flatten().tolist()
        both = sum(a and b for a, b in zip(said, true, strict=True))
        assert scores[row].item() == pytest.approx(2 * both / (sum(said) + sum(true)))


def test_nothing_found_where_there_is_nothing_is_right() -> None:
    logits = torch.full((2, 1, 2, 2), -1.0)
    logits[1, 0, 0, 0] = 1
    assert dice_scores(logits, torch.zeros(2, 1, 2, 2), torch.ones(2, dtype=torch.bool)).tolist() == [1, 0]


def test_a_mask_of_another_size_is_refused() -> None:
    logits, present = torch.zeros(1, 1, 8, 8), torch.ones(1, dtype=torch.bool)
    for function in (segmentation_loss, dice_scores):
        with pytest.raises(UserError, match=r"a mask is 1 x 4 x 8 .* its prediction 1 x 8 x 8: give masks the size"):
            function(logits, torch.zeros(1, 1, 4, 8), present)
