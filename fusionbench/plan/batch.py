"""The largest micro-batch that the data can give, as shapes alone."""

from __future__ import annotations

import torch
from torch import Tensor

from fusionbench.data.module import FusionData
from fusionbench.errors import UserError
from fusionbench.types import Batch


def micro_batch(source: FusionData, cases: int) -> Batch:
    """Return a batch on ``meta`` of as many cases, all of whose texts are as long as the longest.

    Args:
        source: The data, of which one training case is read.
        cases: B, on one device.
    """
    one = source.train_dataloader().dataset[0, 0]
    inputs = {}
    for name, value in one.inputs.items():
        shape = (_longest(source, name),) if name in source.tokenizers else tuple(value.shape)
        inputs[name] = _empty(cases, shape, value)
    names = [str(case) for case in range(cases)]
    return Batch(
        inputs,
        _empty(cases, tuple(one.present.shape), one.present),
        _empty(cases, tuple(one.target.shape), one.target),
        names,
        names,
        {name: _empty(cases, tuple(value.shape), value) for name, value in one.extras.items()},
    )


def share(batch_size: int, devices: int) -> int:
    """Return how many cases of a batch each device has.

    Raises:
        UserError: They cannot be shared out equally.
    """
    if batch_size % devices:
        near = batch_size // devices * devices or devices
        raise UserError(
            f"data.batch_size {batch_size} cannot be shared out equally among {devices} devices; set "
            f"data.batch_size={near}, or another multiple of {devices}"
        )
    return batch_size // devices


def _longest(source: FusionData, name: str) -> int:
    return max(len(ids) for ids in source.data.cells[name] if ids is not None)  # type: ignore[arg-type]


def _empty(cases: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(cases, *shape, dtype=like.dtype, device="meta")
