"""The cross block against a plain loop, its masks, and one frozen base under the directions' adapter sets."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from plain_cross import cross, rms, swiglu
from tiny import adaptation, perturb
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig, Qwen2Config, Qwen3Config

from fusionbench.layers.cross_block import CrossBlock

SIZES = {
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 5,
    "initializer_range": 0.5,
}
FAMILIES = {"llama": LlamaConfig(**SIZES), "biases": Qwen2Config(**SIZES), "norms": Qwen3Config(**SIZES, head_dim=4)}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
LENGTHS = {"image": 3, "report": 4, "scan": 2}


def block(family: str = "llama") -> CrossBlock:
    """Return a random block whose norms are not ones."""
    return perturb(CrossBlock(AutoModel.from_config(FAMILIES[family]).layers[0]))


def states(count: int = 2, rows: int = 3) -> dict[str, Tensor]:
    """Return random tokens of the first few modalities."""
    return {name: torch.randn(rows, n, 12) for name, n in list(LENGTHS.items())[:count]}


def masks(of: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return masks: all open; the report padded; everything but the first modality absent."""
    made = {name: torch.ones(values.shape[:2], dtype=torch.bool) for name, values in of.items()}
    made["report"][1, 2:] = False
    for name in list(of)[1:]:
        made[name][2] = False
    return made


def check(network: CrossBlock, of: dict[str, Tensor], open_: dict[str, Tensor] | None) -> None:
    """Compare every row with the plain loop."""
    out = network(of, open_)
    assert list(out) == list(of)
    for row in range(3):
        flags = {n: [True] * v.shape[1] if open_ is None else open_[n][row].tolist() for n, v in of.items()}
        wanted = cross({n: v[row] for n, v in of.items()}, network, flags)
        for name in of:
            torch.testing.assert_close(out[name][row], wanted[name], **CLOSE)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_what_the_equations_say(family: str, count: int) -> None:
    network, of = block(family), states(count)
    check(network, of, masks(of))
    check(network, of, None)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_each_direction_has_weights_of_its_own(method: str) -> None:
    network, of = block(), states(3)
    single = sum(p.numel() for p in network.parameters())
    tuning = adaptation(method)
    tuning.sites = ("q", "k", "v", "proj", "gate", "fc1", "fc2")
    tuning.tune(network, 3)
    if method == "full":
        network.separate(3)
        attention = sum(p.numel() for p in network.attentions[0].parameters())
        assert sum(p.numel() for p in network.parameters()) == single + 2 * attention
    else:
        assert sum(p.numel() for p in network.parameters() if not p.requires_grad) == single
    perturb(network)
    out = network(of, masks(of))
    check(network, of, masks(of))
    sum(values.square().sum() for values in out.values()).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or (parameter.grad.isfinite().all() and parameter.grad.any()), name


def test_copies_start_equal_and_part() -> None:
    network, of = block(), states()
    before = network(of)
    network.separate(2)
    torch.testing.assert_close(network(of), before, rtol=0, atol=0)
    with torch.no_grad():
        network.attentions[1].v.weight.mul_(2)
    after = network(of)
    assert torch.equal(after["image"], before["image"])
    assert not torch.allclose(after["report"], before["report"])


def test_a_longer_pad_changes_nothing() -> None:
    network, of = block(), states()
    open_ = masks(of)
    longer = {**of, "report": torch.cat([of["report"], torch.full((3, 5, 12), 1e3)], dim=1)}
    more = {**open_, "report": torch.cat([open_["report"], torch.zeros(3, 5, dtype=torch.bool)], dim=1)}
    short, long = network(of, open_), network(longer, more)
    torch.testing.assert_close(long["image"], short["image"], **CLOSE)
    torch.testing.assert_close(long["report"][:, :4], short["report"], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_with_nothing_to_read_has_a_reading_of_zeros(family: str) -> None:
    network, of = block(family), states()
    of = {name: values.requires_grad_() for name, values in of.items()}
    out = network(of, masks(of))["image"][2]
    zero = swiglu(torch.zeros(12), network.mlp, 0)
    torch.testing.assert_close(out, torch.stack([rms(zero + x, network.norm_out) for x in of["image"][2]]), **CLOSE)
    out.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in (*network.parameters(), *of.values()))
    assert not of["report"].grad[2].any()


def test_a_modality_alone_reads_nothing() -> None:
    network = block()
    alone = {"image": torch.randn(2, 3, 12)}
    silent = deepcopy(network)
    with torch.no_grad():
        silent.attentions[0].v.weight.mul_(3)
    assert torch.equal(network(alone)["image"], silent(alone)["image"])


def test_the_sites_are_linear_layers_and_norms() -> None:
    network = block()
    network.separate(2)
    sites = network.linear_sites()
    assert list(sites) == ["q", "k", "v", "proj", "gate", "fc1", "fc2"]
    named = [name for names in sites.values() for name in names]
    assert {n for n, m in network.named_modules() if isinstance(m, nn.Linear)} == set(named)
    assert [tuple(network.get_submodule(n).weight.shape) for n in network.norm_sites()] == [(12,), (12,)]
