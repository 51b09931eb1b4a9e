"""Trainable parameters, exactly the published ones (ei_facts.md, "Trainable-parameter checks").

Networks are built without memory (``meta``), so that a ViT-B costs nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusionbench import registry
from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.timm_vit import TimmViT
from fusionbench.fusion.base import Strategy
from fusionbench.types import ModalitySpec, Problem

HEAD = 768 * 4 + 4


def build(fusion: str, count: int, classes: int, adapt: str = "mor", model: str = "base", **tuning: Any) -> Strategy:
    """Build a strategy on a full-size ViT."""
    made = Problem({f"m{i}": ModalitySpec("image") for i in range(count)}, tuple("abcdef"[:classes]))
    node = (TimmViT, {"model": f"vit_{model}_patch16_224", "weights": "random"})
    method = registry.describe("adapt", adapt).load()(**tuning)
    with torch.device("meta"):
        pool = EncoderPool(made.modalities, dict.fromkeys(made.modalities, node), method)
        return registry.describe("fusion", fusion).load()(made, pool)


def trainable(network: Strategy) -> int:
    """Count what is trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("adapt", "tuning", "wanted"),
    [
        ("mor", {}, 1_477_732),
        ("mor", {"bypass": False}, 1_431_628),
        ("lora", {}, 371_716),
        ("lora_moe", {}, 1_247_308),
        ("frozen", {}, 3_076),
    ],
    ids=["mor", "mor without bypass", "lora", "lora_moe", "linear probe"],
)
def test_unimodal(adapt: str, tuning: dict[str, Any], wanted: int) -> None:
    network = build("unimodal", 1, 4, adapt, **tuning)
    assert trainable(network) == wanted
    assert sum(p.numel() for p in network.views.parameters() if p.requires_grad) == wanted - HEAD


@pytest.mark.parametrize(
    ("count", "classes", "model", "wanted"),
    [(2, 4, "base", 7_099_026), (2, 5, "base", 7_102_102), (3, 3, "base", 12_423_765), (2, 4, "large", 17_329_682)],
    ids=["MMC-AMD", "Derm7pt", "MRNet", "MMC-AMD with RETFound"],
)
def test_early_intervention(count: int, classes: int, model: str, wanted: int) -> None:
    assert trainable(build("early_intervention", count, classes, model=model)) == wanted


@pytest.mark.parametrize(("fusion", "count"), [("early_intervention", 2), ("early_intervention", 4), ("concat", 3)])
def test_one_frozen_vit_whatever_the_modalities_and_roles(fusion: str, count: int) -> None:
    network = build(fusion, count, 4)
    assert len(network.views.backbones) == 1
    with torch.device("meta"):
        one = TimmViT(ModalitySpec("image"), model="vit_base_patch16_224", weights="random")
    frozen = sum(p.numel() for p in one.parameters())
    assert sum(p.numel() for p in network.parameters()) == frozen + trainable(network)


def test_full_tuning_holds_a_copy_for_each_view() -> None:
    network = build("concat", 3, 4, adapt="full")
    assert len(network.views.backbones) == 3
    assert all(p.requires_grad for p in network.parameters())
