"""Trained parameters on full-size ViTs, by arithmetic, beside the published ones (EI, Table 7; a head has 3,076).

Networks are built without memory (``meta``), so that a ViT-B costs nothing.
"""

from __future__ import annotations

import pytest
import torch

from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.bitfit import BitFit
from fusionbench.adapt.late_lora import LateLoRA
from fusionbench.adapt.lora import LoRA
from fusionbench.adapt.losa import LoSA
from fusionbench.adapt.mor import MoR
from fusionbench.adapt.rlrr import RLRR
from fusionbench.adapt.vpt import VPT
from fusionbench.encoders.timm_vit import TimmViT
from fusionbench.types import ModalitySpec

CLIP, DINO = "vit_base_patch16_clip_224.openai", "vit_base_patch14_reg4_dinov2.lvd142m"
L, D, F, HEAD = 12, 768, 3072, 768 * 4 + 4
IN_BLOCKS = L * (D + 3 * D + D + D + F + D)  # biases: norm1, qkv, proj, norm2, fc1, fc2
WANTED = {
    "vpt": (VPT(), L * 5 * D, 49),
    "vpt shallow": (VPT(depth="shallow"), 5 * D, None),
    "bitfit": (BitFit(), IN_BLOCKS + D + D, 106),  # the final norm, and norm_pre (CLIP) or the patches (DINOv2)
    "late_lora": (LateLoRA(), 6 * 2 * 4 * (D + D), 77),
    "late_lora, the other reading": (LateLoRA(sites=("qkv", "proj"), last=4), 4 * 4 * (D + 3 * D + D + D), 77),
    "rlrr": (RLRR(), L * (4 * 3 * D + (D + 2 * F) + (F + 2 * D) + 4 * D) + 2 * D + 2 * D, 292),
    "lora": (LoRA(), L * 2 * 4 * (D + F), 372),
    "mor without bypass": (MoR(bypass=False), L * (2 * 14 * (D + F) + 3 * (D + F) + 6), 1432),
}


def count(method: Adaptation, model: str, views: int = 1, size: int = 224) -> int:
    """Count what a method trains in a ViT-B."""
    with torch.device("meta"):
        encoder = TimmViT(ModalitySpec("image", size=size), model=model, weights="random")
        method.apply(encoder, views)
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


@pytest.mark.parametrize("model", [CLIP, DINO], ids=["CLIP", "DINOv2"])
@pytest.mark.parametrize("name", WANTED)
def test_counts_are_the_published_ones(name: str, model: str) -> None:
    method, wanted, published = WANTED[name]
    assert count(method, model) == wanted
    assert published is None or round((wanted + HEAD) / 1000) == published


@pytest.mark.parametrize(
    ("model", "tokens", "published"),
    [(CLIP, (28**2 + 1, 32**2 + 1, 16**2 + 1), 100), (DINO, (32**2 + 5, 37**2 + 5, 19**2 + 5), 113)],
    ids=["CLIP", "DINOv2"],
)
def test_losa_with_each_datasets_tokens_has_the_published_counts_in_the_mean(
    model: str, tokens: tuple[int, ...], published: int
) -> None:
    counts = [count(LoSA(tokens="input"), model, size=size) for size in (448, 512, 256)]  # MMC-AMD, Derm7pt, MRNet
    mixer = [2 * 2 * D + (2 * 4 * D + 4 + D) + (2 * 4 * t + 4 + t) for t in tokens]
    assert counts == [6 * m for m in mixer]
    assert round((sum(counts) / 3 + HEAD) / 1000) == published


def test_a_fixed_number_of_tokens_gives_fewer() -> None:
    assert count(LoSA(), CLIP) == count(LoSA(), DINO) == 59_952 + 54 * 197 == 70_590


def test_views_hold_a_set_each() -> None:
    assert count(RLRR(), CLIP, views=4) == 4 * count(RLRR(), CLIP)
