"""UniModel against a plain loop: one sequence, one adapter set, further encoders where needed."""

from __future__ import annotations

import pytest
import torch
from plain_blocks import final_norm, own_tokens
from plain_vectors import MOR, trainable, vit_base
from tiny import batch, images, pool, problem, strategy
from torch import Tensor

from fusionbench.encoders.base import Tokens
from fusionbench.errors import UserError
from fusionbench.fusion.unimodel import UniModel

CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def entering(network: UniModel, name: str, value: Tensor) -> Tensor:
    """Return one modality's tokens as they enter the one encoder, from the encoders' parts."""
    marked = network.modality[network.names.index(name)]
    if name in network.further:
        return network.projections[name](own_tokens(network, name, value)) + marked
    encoder = network.views.encoder(network.carrier)
    rows = value if network.problem.modalities[name].is_image else value[None]
    parts = [encoder.embed(row[None]) for row in rows]
    return torch.cat([p.values[0] if p.mask is None else p.values[0][p.mask[0]] for p in parts]) + marked


def plain(network: UniModel, inputs: dict[str, Tensor], here: list[str]) -> Tensor:
    """Return one case's logits (K,); the first token is the class token, even where its modality is absent."""
    order = [network.carrier, *(n for n in network.names if n != network.carrier)]
    parts = {n: entering(network, n, inputs[n]) for n in order}
    first = parts[network.carrier]
    tokens = [first if network.carrier in here else first[:1], *(parts[n] for n in order[1:] if n in here)]
    encoder = network.views.encoder(network.carrier)
    encoded = encoder.encode(Tokens(torch.cat(tokens)[None])).values[0]
    return network.head.weight @ final_norm(encoder, encoded[:1])[0] + network.head.bias


@pytest.mark.parametrize(
    "names", [("picture", "report", "scan"), ("report", "picture", "record")], ids=["vision first", "text first"]
)
def test_it_is_what_the_docstring_says(names: tuple[str, ...]) -> None:
    made = problem(names)
    network = strategy("unimodel", made).eval()
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    cases = batch(made, present=present)
    logits = network(cases.inputs, cases.present).logits
    for row in range(3):
        here = [n for i, n in enumerate(names) if present[row, i]]
        wanted = plain(network, {n: v[row] for n, v in cases.inputs.items()}, here)
        torch.testing.assert_close(logits[row], wanted, **CLOSE)


def test_the_first_encoder_that_takes_tokens_carries_the_sequence() -> None:
    made = problem(("picture", "record", "report"))
    network = strategy("unimodel", made, pool(made, "full", {"image": "timm_cnn", "table": "table_mlp"})).eval()
    assert network.carrier == "report"
    assert network.further == ("picture", "record")
    cases = batch(made, 3)
    wanted = plain(network, {n: v[1] for n, v in cases.inputs.items()}, list(network.names))
    torch.testing.assert_close(network(cases.inputs, cases.present).logits[1], wanted, **CLOSE)


def test_without_an_encoder_that_takes_tokens_it_is_refused() -> None:
    made = problem(("picture", "record"))
    with pytest.raises(UserError, match="unimodel needs one encoder that takes tokens"):
        strategy("unimodel", made, pool(made, "full", {"image": "timm_cnn", "table": "table_mlp"}))


@pytest.mark.parametrize("method", ["mor", "full"])
def test_modalities_of_one_encoder_node_share_encoder_and_adapter_set(method: str) -> None:
    one, three = images(1), images(3)
    first, second = (strategy("unimodel", made, pool(made, method)) for made in (one, three))
    assert list(second.views.address) == ["image0"]
    assert len(second.views.backbones) == 1
    sizes = [sum(p.numel() for p in network.parameters()) for network in (first, second)]
    assert sizes[1] - sizes[0] == 2 * 64


def test_complete_cases_need_no_mask() -> None:
    made = images(2, slices=2)
    network = strategy("unimodel", made).eval()
    cases = batch(made, 2)
    masked = network(cases.inputs, cases.present).logits
    object.__setattr__(made, "complete", True)
    torch.testing.assert_close(network(cases.inputs, cases.present).logits, masked, **CLOSE)


def test_parameters_are_those_of_one_vit_with_mor() -> None:
    assert trainable(vit_base("unimodel", 2, 4)) == MOR + 4 * 768 + 4 + 2 * 768 == 1_479_268
