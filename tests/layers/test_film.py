"""FiLM against a plain loop, and its start."""

from __future__ import annotations

import torch
from tiny import perturb

from fusionbench.layers.film import FiLM


def test_each_channel_is_scaled_and_shifted() -> None:
    layer = perturb(FiLM(5, 3))
    skip, vector = torch.randn(2, 3, 4, 6), torch.randn(2, 5)
    out = layer(skip, vector)
    weight, bias = layer.project.weight, layer.project.bias
    for row in range(2):
        for channel in range(3):
            gamma = weight[channel] @ vector[row] + bias[channel]
            beta = weight[3 + channel] @ vector[row] + bias[3 + channel]
            torch.testing.assert_close(out[row, channel], (1 + gamma) * skip[row, channel] + beta)


def test_it_starts_as_the_identity_and_learns_from_the_first_step() -> None:
    layer = FiLM(5, 3)
    skip = torch.randn(2, 3, 4, 4)
    out = layer(skip, torch.randn(2, 5))
    assert torch.equal(out, skip)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().min() > 0 for p in layer.parameters())
