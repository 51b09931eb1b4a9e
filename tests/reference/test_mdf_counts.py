"""MDF-MLLM at the paper's size, built without memory: what fusion adds to Llama 3.2 11B Vision and ResNet-50's U-Net.

mdf_facts.md: decoder of width 4,096, four skips of 256, 512, 1,024 and 2,048 channels at layers 3, 18, 28 and 38.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from tiny import speaking
from torch import nn

from fusionbench.adapt.full import Full
from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.mllama import Mllama
from fusionbench.encoders.unet import UNet
from fusionbench.fusion.mdf import MDF
from fusionbench.fusion.mllm import MLLM
from fusionbench.types import ModalitySpec, Problem

D = 4096
SKIPS = (256, 512, 1024, 2048)
LLAMA = 10_670_220_835  # Llama-3.2-11B-Vision at 560 pixels
BLOCKS = sum(3 * D * D + (c * D + D) + 2 for c in SKIPS)  # q, k, v; the projection of a skip; α and the gate
FILMS = sum(D * 2 * c + 2 * c for c in SKIPS)


def build(kind: type[MDF] | type[MLLM], **options: Any) -> nn.Module:
    """Build a strategy at full size."""
    specs = {"fundus": ModalitySpec("image", size=512), "notes": ModalitySpec("text")}
    with torch.device("meta"):
        nodes = {
            "fundus": (UNet, {"weights": "random", "backbone": "resnet50", "segment": True}),
            "notes": speaking((Mllama, {"weights": "random", "config": {"vision_config": {"image_size": 560}}})),
        }
        return kind(Problem(specs, ("wet", "dry")), EncoderPool(specs, nodes, Full()), **options)


def numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_additions_are_those_of_the_arithmetic_and_of_the_docstring() -> None:
    network = build(MDF, mask="vessels")
    assert isinstance(network, MDF)
    assert network.layers == (3, 18, 28, 38)
    assert network.unet().skip_channels == SKIPS
    assert (numel(network.blocks), numel(network.films)) == (BLOCKS, FILMS)
    assert numel(network) == LLAMA + numel(network.unet()) + BLOCKS + FILMS
    assert {name: sum(p.numel() for p in own) for name, own in network.parts().items()} == {
        "unet": numel(network.unet()),
        "language_model": LLAMA,
        "fusion": BLOCKS + FILMS,
    }
    told = " ".join((inspect.getdoc(MDF) or "").split())
    for count in (BLOCKS + FILMS, BLOCKS, FILMS):
        assert f"{count:,}" in told


def test_the_other_direction_has_no_gate_and_the_baseline_nothing_of_its_own() -> None:
    other = build(MDF, mask="vessels", query="vision", film=False)
    assert isinstance(other, MDF)
    assert numel(other) == LLAMA + numel(other.unet()) + BLOCKS - len(SKIPS)
    assert numel(build(MLLM)) == LLAMA
