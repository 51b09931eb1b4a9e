"""RadDiag against a plain loop, and what of it counts slices."""

from __future__ import annotations

import pytest
import torch
from plain_blocks import final_norm, transform
from plain_vectors import clip, dinov2, millions, trainable, vit_base
from tiny import batch, images, problem, strategy
from torch import Tensor
from torch.nn import functional as F

from fusionbench.errors import UserError
from fusionbench.fusion.raddiag import RadDiag

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


def vectors(network: RadDiag, name: str, value: Tensor) -> list[Tensor]:
    """Return one case's vector of each slice, from the encoder's parts."""
    encoder, index = network.views.encoder(name), network.views.address[name][1]
    rows = value if network.problem.modalities[name].is_image else value[None]
    encoded = [encoder.encode(encoder.embed(row[None]), views=(index,)).values[0, :1] for row in rows]
    return [network.projections[name](final_norm(encoder, first))[0] for first in encoded]


def plain(network: RadDiag, inputs: dict[str, Tensor], here: list[str]) -> Tensor:
    """Return one case's logits (K,)."""
    sequence = [network.case_class[0]]
    for name in here:
        scan = torch.stack([network.slice_class[0], *vectors(network, name, inputs[name])])
        scan = torch.stack([token + network.positions[place] for place, token in enumerate(scan)])
        read = transform(scan, network.over_slices, [True] * len(scan))[0]
        sequence.append(read + network.modality[network.names.index(name)])
    read = transform(torch.stack(sequence), network.over_modalities, [True] * len(sequence))[0]
    first, _, last = network.head
    return last.weight @ F.gelu(first.weight @ read + first.bias) + last.bias


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "inference"])
def test_it_is_what_the_equations_say(grad: bool) -> None:
    made = problem(("picture", "report", "scan"))
    network = strategy("raddiag", made).eval()
    cases = batch(made, present=PRESENT)
    with torch.set_grad_enabled(grad):
        logits = network(cases.inputs, cases.present).logits
    for row in range(3):
        here = [n for i, n in enumerate(network.names) if PRESENT[row, i]]
        wanted = plain(network, {n: v[row] for n, v in cases.inputs.items()}, here)
        torch.testing.assert_close(logits[row], wanted, **CLOSE)


def test_slices_are_told_apart_by_their_place() -> None:
    made = images(1, slices=3)
    network = strategy("raddiag", made).eval()
    assert network.positions.shape == (4, 64)
    cases = batch(made, 2)
    turned = {"image0": cases.inputs["image0"].flip(1)}
    before = network(cases.inputs, cases.present).logits
    assert not torch.allclose(network(turned, cases.present).logits, before, atol=1e-4)


def test_one_transformer_reads_the_slices_of_all_modalities() -> None:
    few, many = (strategy("raddiag", images(count)) for count in (2, 4))
    size = [sum(p.numel() for p in n.over_slices.parameters()) for n in (few, many)]
    assert size[0] == size[1] == 6 * 64**2 + 10 * 64


def test_parameters_are_the_published_ones() -> None:
    """Three layers of 6 d² + 10 d, an MLP, class tokens, positions and modality embeddings."""
    network, d = vit_base("raddiag", 2, 4, "frozen"), 768
    assert trainable(network) == 3 * (6 * d**2 + 10 * d) + (d**2 + d) + (4 * d + 4) + 6 * d == 11_238_148
    assert millions("raddiag", clip) == 212.2
    assert millions("raddiag", dinov2) == 213.3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 0}, "'fusion.layers' must be at least 1, not 0"),
        ({"slice_layers": 0}, "'fusion.slice_layers' must be at least 1, not 0"),
        ({"ratio": -1.0}, "'fusion.ratio' must be above 0, not -1.0"),
        ({"heads": 0}, "'fusion.heads' must divide the tokens' width 64, but 0 does not"),
        ({"slice_heads": 3}, "'fusion.slice_heads' must divide the tokens' width 64, but 3 does not"),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        strategy("raddiag", images(2), **options)
    assert str(caught.value) == said
