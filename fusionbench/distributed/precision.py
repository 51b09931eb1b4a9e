"""The type in which ZeRO holds a network."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins.precision.deepspeed import DeepSpeedPrecision
from torch import nn

from fusionbench.fusion.criterion import BinaryCrossEntropy, CrossEntropy
from fusionbench.layers.wide_batch_norm import widen


class ZeroPrecision(DeepSpeedPrecision):
    """Leaves a network alone in 32-true, where Lightning's would turn what is held in bfloat16 into float32."""

    @property
    def held(self) -> torch.dtype | None:
        """The type of all parameters, which DeepSpeed keeps in float32 as well where they are trained; None: own."""
        return None if self.precision == "32-true" else self._desired_dtype

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Turn the network into the type it is held in, under mixed precision too: DeepSpeed leaves buffers alone."""
        return module if self.held is None else in_half(module, self.held)

    def backward(self, tensor: Any, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Leave the loss as it is, which Lightning has divided by ``accumulate``; DeepSpeed would do so again."""
        super().backward(tensor, model, optimizer, *args, scale_wrt_gas=False, **kwargs)


def in_half(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Turn a network into half precision, but for what adds up small steps or is given by the user.

    The running statistics of batch norms and the weights of classes stay in float32.

    Args:
        module: The network, changed where it stands.
        dtype: The type of all else.
    """
    wide = [p for p in module.modules() if widen(p) or isinstance(p, CrossEntropy | BinaryCrossEntropy)]
    kept = [(part, dict(part.named_buffers(recurse=False))) for part in wide]
    module.to(dtype)
    for part, buffers in kept:
        for name, value in buffers.items():
            setattr(part, name, value)
    return module
