"""A network in half precision keeps its batch norms' statistics, and its loss the class weights, in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from fusionbench.distributed.precision import in_half
from fusionbench.fusion.criterion import CrossEntropy
from fusionbench.layers.wide_batch_norm import WideBatchNorm, WideBatchNormAct, widen

NORMS = {
    "1d": lambda: nn.BatchNorm1d(4),
    "3d": lambda: nn.BatchNorm3d(4),
    "mean of all": lambda: nn.BatchNorm2d(4, momentum=None),
    "no weights": lambda: nn.BatchNorm2d(4, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "activated": lambda: BatchNormAct2d(4),
}


def rows(norm: nn.Module) -> torch.Tensor:
    more = {nn.BatchNorm1d: (), nn.BatchNorm3d: (3, 3, 3)}.get(type(norm), (3, 3))
    return 3 + torch.randn(8, 4, *more)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_the_plain_norm_whatever_it_is_given(name: str, dtype: torch.dtype) -> None:
    plain = NORMS[name]()
    values = rows(plain)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, 1.0, 0.2)
    wide = in_half(copy.deepcopy(plain), dtype)
    assert isinstance(wide, WideBatchNorm | WideBatchNormAct)
    assert widen(wide)
    close = {"rtol": 0, "atol": 0} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.03}
    for training in (True, True, False):
        one, other = values.clone().requires_grad_(), values.to(dtype).requires_grad_()
        wanted, found = plain.train(training)(one), wide.train(training)(other)
        wanted.square().sum().backward()
        found.float().square().sum().backward()
        assert found.dtype == other.grad.dtype == dtype
        torch.testing.assert_close(found.float(), wanted, **close)
    torch.testing.assert_close(wide.state_dict(), plain.state_dict(), check_dtype=False, **close)
    for own, grad in ((p, q.grad) for p, q in zip(wide.parameters(), plain.parameters(), strict=True)):
        torch.testing.assert_close(own.grad.float(), grad, rtol=0.05, atol=2.0 if dtype != torch.float32 else 0)


@pytest.mark.parametrize("make", [nn.BatchNorm2d, BatchNormAct2d])
def test_a_small_drift_is_not_lost(make: type[nn.Module]) -> None:
    norm = in_half(make(2), torch.bfloat16)
    norm.momentum = 0.001
    values = torch.cat([torch.ones(8, 2, 2, 2), 3 * torch.ones(8, 2, 2, 2)]).bfloat16()
    for _ in range(2000):
        norm(values)
    assert norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, torch.full((2,), 2 * (1 - 0.999**2000)), rtol=1e-3, atol=0)


def test_all_else_is_half() -> None:
    weight = torch.tensor([1.0, 1.0 + 2**-12])
    network = nn.ModuleDict({"layer": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2), "loss": CrossEntropy(weight)})
    for _ in range(2):  # a fit and a prediction convert it each
        in_half(network, torch.bfloat16)
    types = {name: tensor.dtype for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    wide = {"norm.running_mean", "norm.running_var", "loss.weight"}
    assert {name for name, dtype in types.items() if dtype == torch.float32} == wide
    assert {dtype for name, dtype in types.items() if name not in wide} == {torch.bfloat16, torch.int64}
    assert torch.equal(network["loss"].weight, weight)
