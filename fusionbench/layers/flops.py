"""Floating point operations of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(forward: Callable[[], object]) -> int:
    """Run a forward pass and count its floating point operations: matrix products, convolutions and attention.

    A multiply-accumulate is 2 operations. Norms, activations and sums are not counted, as is usual. Attention counts on
    every device: torch's counter knows the kernels of a GPU, that of a CPU is added here, and the module
    ``MultiheadAttention`` is kept from its fused path, which hides its products.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={_ON_CPU: _attention}) as counter:
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    """Return 2 · B · heads · N_q · N_k · (D_qk + D_v): every query with every key, and the weighted sum of values."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[-2] * (width + value[-1])
