"""What of a network is trained and what is its frozen base."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Return all tensors but the frozen parameters."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items() if k not in frozen}


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that one of two states lacks, or that have another shape in it."""
    shared = [name for name in own if name in given]
    return sorted(set(own) ^ set(given)) + [name for name in shared if own[name].shape != given[name].shape]


def base_checksum(module: nn.Module) -> str:
    """Return a sha256 over the frozen parameters, names left out, so that it names the weights and not their place."""
    digest = hashlib.sha256()
    for _, parameter in sorted(module.named_parameters()):
        if not parameter.requires_grad:
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parameter_counts(module: nn.Module) -> dict[str, int]:
    """Return the number of trainable and of all parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return {"trainable": sum(n for n, t in sizes if t), "total": sum(n for n, _ in sizes)}
