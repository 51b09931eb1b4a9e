"""The readout against a plain loop: which token, what is absent, and the way through the vocabulary."""

from __future__ import annotations

import pytest
import torch
from plain_cross import readout
from tiny import perturb

from fusionbench.layers.decoder_readout import DecoderReadout, last_token

PRESENT = torch.tensor([[1, 1], [1, 0], [0, 1]], dtype=torch.bool)


@pytest.mark.parametrize("vocabulary", [None, 9])
@pytest.mark.parametrize("token", ["last", "mean"])
def test_it_is_what_the_equations_say(token: str, vocabulary: int | None) -> None:
    layer = perturb(DecoderReadout(6, token=token, vocabulary=vocabulary)).eval()
    values = {"image": torch.randn(3, 4, 6), "report": torch.randn(3, 5, 6)}
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool)
    out = layer({"image": (values["image"], None), "report": (values["report"], mask)}, PRESENT)
    for row in range(3):
        here = [name for m, name in enumerate(values) if PRESENT[row, m]]
        flags = {"image": [True] * 4, "report": mask[row].tolist()}
        wanted = readout({n: v[row] for n, v in values.items()}, layer, flags, here)
        torch.testing.assert_close(out[row], wanted, rtol=1e-4, atol=1e-5)


def test_the_last_token_of_nothing_but_padding_is_finite() -> None:
    values = torch.randn(2, 3, 4)
    mask = torch.tensor([[0, 0, 0], [1, 0, 0]], dtype=torch.bool)
    assert torch.equal(last_token(values, mask), torch.stack([values[0, 2], values[1, 0]]))


def test_dropout_acts_in_training_on_the_sum() -> None:
    layer = DecoderReadout(64, token="last", dropout=0.5)
    sequences = {"image": (torch.randn(4, 2, 64), None)}
    here = torch.ones(4, 1, dtype=torch.bool)
    dropped, kept = layer(sequences, here), layer.eval()(sequences, here)
    zero = dropped == 0
    assert 0.2 < zero.float().mean() < 0.8
    torch.testing.assert_close(dropped[~zero], 2 * kept[~zero])
