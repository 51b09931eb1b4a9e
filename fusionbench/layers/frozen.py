"""What of a network is trained and what is frozen, and a checksum that tells one frozen base from another.

All of it also holds for networks that several processes hold in parts; every process must then call it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusionbench.layers import sharded
from fusionbench.layers.deferred import settle


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Return all tensors but the frozen parameters, in main memory."""
    return sharded.state_dict(module, wanted=lambda parameter: parameter.requires_grad)


def trained_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of ``trained_state``, for which no values need be gathered."""
    own = dict(module.named_parameters(remove_duplicate=False))
    kept = {name: own.get(name, tensor) for name, tensor in module.state_dict().items()}
    return {name: sharded.shape(t) for name, t in kept.items() if name not in own or t.requires_grad}


def misfits(own: Mapping[str, Tensor | torch.Size], given: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that one of two states lacks, or that have another shape in it.

    Args:
        own: A state, or the shapes of one.
        given: The other; of a lazy one no tensor is put together.
    """
    both = [name for name in own if name in given]
    return sorted(set(own) ^ set(given)) + [name for name in both if _shape(own, name) != _shape(given, name)]


def _shape(state: Mapping[str, Tensor | torch.Size], name: str) -> torch.Size:
    if isinstance(state, sharded.LazyState):
        return state.shape(name)
    found = state[name]
    return found if isinstance(found, torch.Size) else found.shape


def base_checksum(module: nn.Module) -> str:
    """Return a sha256 over the frozen parameters, names left out, so that it names the weights and not their place."""
    digest = hashlib.sha256()
    for _, parameter in sorted(module.named_parameters()):
        if not parameter.requires_grad:
            digest.update(_content(sharded.value(parameter)))
    return digest.hexdigest()


def settled_checksum(module: nn.Module) -> str:
    """Return the checksum of a network that was just built, whose parameters become this process's parts on the way.

    Each in turn is read from its file, if it is still there, counted, parted among the processes, if they are several,
    and let go, so that the network is never whole in one of them. Else this is ``base_checksum``.
    """
    digest = hashlib.sha256()
    sharded.announce(module)
    for _, parameter in sorted(module.named_parameters()):
        settle(parameter)
        if not parameter.requires_grad:
            digest.update(_content(parameter))
        sharded.partition(parameter)
    return digest.hexdigest()


def parameter_counts(module: nn.Module) -> dict[str, int]:
    """Return the number of trainable and of all parameters."""
    sizes = [(sharded.numel(p), p.requires_grad) for p in module.parameters()]
    return {"trainable": sum(n for n, t in sizes if t), "total": sum(n for n, _ in sizes)}


def _content(parameter: Tensor) -> memoryview:
    data: memoryview = parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return data
