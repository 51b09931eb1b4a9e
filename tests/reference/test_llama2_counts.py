"""LLaMA-II fusion at the size of Llama 2 7B, built without memory: all and trained parameters, written out.

llama2_facts.md, 3: 3 text and 3 vision layers, 3 cross layers, 14 classes, pictures of 256² in patches of 32².
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from fusionbench import registry
from fusionbench.adapt.views import EncoderPool
from fusionbench.encoders.llama import Llama
from fusionbench.fusion.base import Strategy
from fusionbench.types import ModalitySpec, Problem

D, HIDDEN, WORDS, CLASSES, PATCH = 4096, 11008, 32000, 14, 32
CONFIG = {
    "model_type": "llama",
    "hidden_size": D,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": HIDDEN,
    "vocab_size": WORDS,
}
LAYER = 4 * D * D + 3 * D * HIDDEN + 2 * D  # q, k, v, o; gate, up, down; both norms; no biases
ENCODERS = WORDS * D + 3 * LAYER + D  # one base for text and vision layers, the token embedding, the final norm
STEM = 3 * PATCH**2 * D + D + 2 * D + (256 // PATCH) ** 2 * D  # convolution, LayerNorm, positions
POOLER = D * D + D
HEAD = D * CLASSES + CLASSES
READOUT = D + POOLER + HEAD  # behind its norm
VOCABULARY = D * WORDS + WORDS + WORDS * D + D
BLOCKS = {"llama_late": 3, "llama_early": 3, "llama_mixed": 4}


def lora(fusion: str, rank: int, sites: int = 2) -> int:
    """Count rank · (in + out) of each site in 2 views of 3 layers and in 2 directions of each block."""
    return rank * (D + D) * sites * 2 * (3 + BLOCKS[fusion])


def build(fusion: str, method: str, tuning: dict[str, Any], **options: Any) -> Strategy:
    """Build a strategy at full size."""
    specs = {"image": ModalitySpec("image", size=256), "report": ModalitySpec("text")}
    node = (Llama, {"weights": "random", "config": CONFIG, "layers": (0, 1, 2), "patch": PATCH})
    tuned = registry.describe("adapt", method).load()(**tuning)
    with torch.device("meta"):
        pool = EncoderPool(specs, dict.fromkeys(specs, node), tuned)
        made = Problem(specs, tuple(str(k) for k in range(CLASSES)), multilabel=True)
        return registry.describe("fusion", fusion).load()(made, pool, **options)


def counts(network: Strategy) -> tuple[int, int]:
    """Return how many parameters there are, and how many are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


@pytest.mark.parametrize("rank", [2, 4, 8])
@pytest.mark.parametrize("fusion", BLOCKS)
def test_parameters_are_those_of_the_arithmetic_and_of_the_docstring(fusion: str, rank: int) -> None:
    network = build(fusion, "peft_lora", {"rank": rank})
    trained = STEM + READOUT + lora(fusion, rank)
    total = ENCODERS + BLOCKS[fusion] * LAYER + trained
    assert counts(network) == (total, trained)
    told = " ".join((inspect.getdoc(type(network)) or "").split())
    assert f"{total:,}" in told
    assert f"{trained:,}" in told


def test_our_lora_has_as_many() -> None:
    _, trained = counts(build("llama_early", "lora", {"rank": 2, "sites": ("q", "v")}))
    assert trained == STEM + READOUT + lora("llama_early", 2) == 30_093_326


@pytest.mark.parametrize("sites", [("q",), ("q", "v"), ("q", "k", "v", "proj")], ids=len)
def test_a_total_rank_gives_equal_counts_whatever_the_sites(sites: tuple[str, ...]) -> None:
    _, trained = counts(build("llama_late", "peft_lora", {"total_rank": 8, "sites": sites}))
    assert trained == STEM + READOUT + lora("llama_late", 8, sites=1)


@pytest.mark.parametrize("fusion", BLOCKS)
def test_what_the_way_through_the_vocabulary_costs(fusion: str) -> None:
    network = build(fusion, "peft_lora", {"rank": 2}, through_vocabulary=True)
    _, trained = counts(network)
    assert trained == STEM + D + VOCABULARY + HEAD + lora(fusion, 2)
    told = " ".join((inspect.getdoc(type(network)) or "").split())
    assert f"{VOCABULARY:,} trained parameters in place of {POOLER:,}" in told


def test_trained_whole_each_direction_has_an_attention_of_its_own() -> None:
    total, trained = counts(build("llama_early", "full", {}))
    encoders = 2 * (3 * LAYER + D) + WORDS * D + STEM  # a base for each modality
    assert total == trained == encoders + 3 * (LAYER + 4 * D * D) + READOUT
