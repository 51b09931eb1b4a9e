"""What the layers of a decoder share is made anew exactly where their input is another."""

from __future__ import annotations

import torch

from fusionbench.layers.decoder_pass import DecoderPass


def test_a_sequence_of_another_mask_or_length_gets_its_own() -> None:
    made: list[tuple[object, object]] = []
    shared = DecoderPass(lambda values, mask: made.append((values.shape[1], mask)) or len(made))
    short, long, mask = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), torch.ones(2, 3, dtype=torch.bool)
    given = [(short, None), (short + 1, None), (short, mask), (short, mask), (short, mask.clone()), (long, None)]
    assert [shared(*one) for one in given] == [1, 1, 2, 2, 3, 4]
    assert [shared(values, None) for values in (long.double(), long.double(), long)] == [5, 5, 6]
