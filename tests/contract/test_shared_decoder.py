"""One decoder node for pictures and text, which every strategy that takes any encoder must serve."""

from __future__ import annotations

import pytest
import torch
from tiny import SPECS, adaptation, batch, encoder_node, strategy, trained
from trials import accepts_missing, counts, gradients, spoil, subsets

from fusionbench import registry
from fusionbench.adapt.views import EncoderPool
from fusionbench.types import Problem


@pytest.mark.parametrize("name", registry.names("fusion"))
@pytest.mark.parametrize("views", [("left", "report"), ("report", "left"), ("left", "report", "right")])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_decoder_node_serves_pictures_and_text(name: str, views: tuple[str, ...], method: str) -> None:
    """Each picture is read by its own stem and the text by its words, whatever the strategy makes of the one node."""
    about = registry.describe("fusion", name).constants
    if about.get("encoders") or len(views) not in counts(name):
        pytest.skip("the strategy takes other encoders, or another number of modalities")
    made = Problem({view: SPECS["report" if view == "report" else "picture"] for view in views}, ("a", "b", "c"))
    node = encoder_node("llama")
    network = strategy(name, made, EncoderPool(made.modalities, dict.fromkeys(views, node), adaptation(method)))
    grads = gradients(network, batch(made, 4))
    assert not [p for p, _ in trained(network) if grads[p] is None or not grads[p].any()]
    if accepts_missing(name):
        cases = batch(made, present=subsets(made))
        first, second = (network.eval()(c.inputs, c.present).logits for c in (cases, spoil(made, cases)))
        assert first.isfinite().all()
        assert torch.equal(first, second)
