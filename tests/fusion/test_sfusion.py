"""SFusion against a plain loop, its weights, its parameters and the tokens that it reads."""

from __future__ import annotations

import pytest
import torch
from plain_blocks import own_tokens, pooled, transform
from plain_vectors import clip, dinov2, millions, trainable, vit_base
from tiny import batch, images, problem, strategy
from torch import Tensor

from fusionbench.errors import UserError
from fusionbench.fusion.sfusion import SFusion
from fusionbench.layers.transformer import sinusoids

SMALL = {"tokens": 3, "layers": 2, "heads": 2, "ratio": 0.5}
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


def plain(network: SFusion, inputs: dict[str, Tensor], here: list[str]) -> tuple[Tensor, Tensor]:
    """Return one case's logits (K,) and weights (M,)."""
    values = [network.projections[n](pooled(own_tokens(network, n, inputs[n]), network.tokens)) for n in here]
    places = sinusoids(len(network.names) * network.tokens, values[0].shape[1])
    own = [places[network.names.index(n) * network.tokens :][: network.tokens] for n in here]
    sequence = torch.cat([v + p for v, p in zip(values, own, strict=True)])
    scores = transform(sequence, network.transformer, [True] * len(sequence)).split(network.tokens)
    total = sum(s.exp() for s in scores)
    weights = [s.exp() / total for s in scores]
    fused = sum(w * v for w, v in zip(weights, values, strict=True)).mean(0)
    share = [weights[here.index(n)].mean() if n in here else torch.tensor(0.0) for n in network.names]
    return network.head.weight @ fused + network.head.bias, torch.stack(share)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "inference"])
def test_it_is_what_the_equations_say(grad: bool) -> None:
    made = problem(("picture", "report", "scan"))
    network = strategy("sfusion", made, **SMALL).eval()
    cases = batch(made, present=PRESENT)
    with torch.set_grad_enabled(grad):
        output = network(cases.inputs, cases.present)
    for row in range(3):
        here = [n for i, n in enumerate(network.names) if PRESENT[row, i]]
        logits, weights = plain(network, {n: v[row] for n, v in cases.inputs.items()}, here)
        torch.testing.assert_close(output.logits[row], logits, **CLOSE)
        torch.testing.assert_close(output.weights[row], weights, **CLOSE)


def test_the_weights_of_complete_cases_need_no_mask() -> None:
    made = images(2)
    network = strategy("sfusion", made, **SMALL).eval()
    cases = batch(made, 2)
    masked = network(cases.inputs, cases.present).logits
    object.__setattr__(made, "complete", True)
    torch.testing.assert_close(network(cases.inputs, cases.present).logits, masked)


def test_the_bias_that_cancels_is_not_trained_and_the_rest_is() -> None:
    network = strategy("sfusion", images(2), **SMALL)
    frozen = [n for n, p in network.transformer.named_parameters() if not p.requires_grad]
    assert frozen == ["layers.1.norm2.bias"]
    cases = batch(images(2), 2)
    network.eval()
    before = network(cases.inputs, cases.present).logits
    with torch.no_grad():
        network.transformer.layers[1].norm2.bias.add_(torch.randn(64))
    torch.testing.assert_close(network(cases.inputs, cases.present).logits, before)


def test_dropout_acts_in_training_alone() -> None:
    made = images(2)
    network = strategy("sfusion", made, **SMALL, dropout=0.5)
    cases = batch(made, 2)
    first, second = (network.train()(cases.inputs, cases.present).logits for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (network.eval()(cases.inputs, cases.present).logits for _ in range(2))
    assert torch.equal(first, second)


def test_what_is_absent_is_not_read_in_training_either() -> None:
    made = problem(("picture", "record", "scan"))
    network = strategy("sfusion", made, **SMALL, dropout=0.5)
    cases = batch(made, present=PRESENT)
    spoilt = {}
    for index, (name, value) in enumerate(cases.inputs.items()):
        spoilt[name] = value.masked_fill(~PRESENT[:, index].reshape(-1, *[1] * (value.ndim - 1)), float("nan"))
    torch.manual_seed(1)
    clean = network(cases.inputs, cases.present).logits
    torch.manual_seed(1)
    assert torch.equal(network(spoilt, cases.present).logits, clean)


def test_parameters_beside_the_published_ones() -> None:
    """Per layer 4 d² + 4 d of attention, 8 d² + 5 d of the feed-forward part and 4 d of norms; a head of 4 classes."""
    network, d = vit_base("sfusion", 2, 4, "frozen"), 768
    assert trainable(network) == 8 * (12 * d**2 + 13 * d) - d + 4 * d + 4 == 56_705_284
    assert millions("sfusion", clip) == 257.7
    assert millions("sfusion", dinov2) == 258.7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokens": 0}, "'fusion.tokens' must be at least 1, not 0"),
        ({"layers": 0}, "'fusion.layers' must be at least 1, not 0"),
        ({"ratio": 0.0}, "'fusion.ratio' must be above 0, not 0.0"),
        ({"dropout": 1.0}, "'fusion.dropout' must be at least 0 and below 1, not 1.0"),
        ({"heads": 5}, "'fusion.heads' must divide the tokens' width 64, but 5 does not"),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        strategy("sfusion", images(2), **options)
    assert str(caught.value) == said
