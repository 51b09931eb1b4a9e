"""Strategies that ask for vectors alone hold and count nothing of an encoder that they never run."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import adaptation, batch, encoder_node, perturb, problem, speaking, step, strategy, trained

from fusionbench.adapt.views import EncoderPool
from fusionbench.layers.frozen import parameter_counts
from fusionbench.types import Problem

VECTORS = ("unimodal", "concat", "mean", "mm_mil", "raddiag", "sfusion", "transchex", "dynmm")


def source(made: Problem, reader: str, method: str) -> EncoderPool:
    """Return a U-Net with a mask decoder and a language model that reads pictures."""
    kind, options = encoder_node("unet")
    nodes: dict[str, Any] = {"picture": (kind, {**options, "segment": True}), "report": speaking(encoder_node(reader))}
    return EncoderPool(made.modalities, nodes, adaptation(method))


@pytest.mark.parametrize("reader", ["llama_vision", "mllama"])
@pytest.mark.parametrize("method", ["frozen", "lora", "full"])
@pytest.mark.parametrize("modality", ["picture", "report"])
def test_what_is_counted_as_trained_alone_gets_gradients(modality: str, method: str, reader: str) -> None:
    made = problem(("picture", "report"))
    network = perturb(strategy("unimodal", made, source(made, reader, method), modality=modality))
    _, losses = step(network, batch(made))
    sum(losses.values()).backward()
    counted = parameter_counts(network)["trainable"]
    assert counted == sum(p.numel() for _, p in trained(network) if p.grad is not None)
    if (modality, method) == ("report", "frozen"):
        assert counted == sum(p.numel() for p in network.head.parameters())


@pytest.mark.parametrize("name", VECTORS)
def test_no_strategy_of_vectors_holds_a_mask_decoder_or_sight(name: str) -> None:
    made = problem(("picture", "report"))
    network = strategy(name, made, source(made, "llama_vision", "frozen"))
    for view in network.views.address:
        encoder = network.views.encoder(view)
        beyond = tuple(f"{part}." for part in encoder.beyond_tokens())
        assert beyond
        assert not [key for key in encoder.state_dict() if key.startswith(beyond)]
