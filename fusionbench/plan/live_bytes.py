"""How many bytes of tensors are alive at once while a function runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations make, from each one's first tensor to the death of its last.

    It sees what torch's dispatcher sees, so what a kernel takes for itself while it runs is not counted. With fake
    tensors nothing is computed, and any size can be counted on any machine. Where a shape depends on data
    (``nonzero``), the largest that there can be is supposed.

    Args:
        known: Tensors whose storages are not counted, such as weights.

    Attributes:
        now: Bytes alive.
        peak: The most that were alive at once.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: Any = WeakIdKeyDictionary()  # storage to a list of one number, its bytes
        for tensor in known:
            self._sizes[tensor.untyped_storage()] = [0]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own interface
        """Run an operation and count what is new in its result."""
        if func is torch.ops.aten.nonzero.default:
            out = args[0].new_zeros((args[0].numel(), args[0].ndim), dtype=torch.int64)
        else:
            out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, out)
        return out

    def forget(self, tensor: Tensor) -> None:
        """Count a tensor's storage no more, such as that of a gradient, which is counted by itself."""
        size = self._sizes.get(tensor.untyped_storage())
        if size is not None:
            self._free(size)

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._sizes:
            return
        self._sizes[storage] = size = [storage.nbytes()]
        weakref.finalize(storage, self._free, size)
        self.now += size[0]
        self.peak = max(self.peak, self.now)

    def _free(self, size: list[int]) -> None:
        self.now -= size[0]
        size[0] = 0
