"""What a GPU and a node's main memory hold under ZeRO (arXiv 1910.02054), as DeepSpeed 0.19 has it.

N processes share out gradients and optimizer states, in stage 3 the parameters too, frozen ones among them. The network
is held in half precision unless the run is in float32. A float32 copy of what is trained counts as optimizer state; in
stage 3 there is none if the network is float32 itself. The peak is that of one of three moments: the backward pass, its
end, when the last bucket is sent and activations are gone, and the optimizer's step. Where files are named, they are
those of deepspeed/runtime/zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fusionbench.distributed.deepspeed_config import SPARE_BUFFERS, deepspeed_config, fitted
from fusionbench.plan.need import Need
from fusionbench.plan.optimizer import OptimizerCost
from fusionbench.plan.sizes import Sizes
from fusionbench.sections import TrainerOptions

# DeepSpeed's own, in numbers, where our config says nothing (config.py and offload_config.py).
_LIVE, _PREFETCH, _SUB_GROUP = 1_000_000_000, 50_000_000, 1_000_000_000
_IN_CPU = 1_000_000_000  # of parameters on a disk that are kept in main memory
_MASTER, _NORM = 4, 8  # bytes of a number in float32 copies, and in norms, which are float64 (utils.py, get_norm_dtype)


@dataclass(frozen=True)
class Zero:
    """Says what options with ZeRO need.

    Args:
        options: With ``strategy`` ``zero2`` or ``zero3``.
        sizes: Of the network.
        cost: The optimizer's, for parameters in float32.
        on_gpu: Whether the devices are GPUs; else they are processes on a CPU.
    """

    options: TrainerOptions
    sizes: Sizes
    cost: OptimizerCost
    on_gpu: bool

    def need(self, activations: int) -> Need:
        """Return what is needed with the given bytes of activations."""
        weights = self._weights + self._gathered
        gradients = self._gradients + self._buckets
        states = 0 if self._offloaded else round(self._own * (self.cost.states + _MASTER * self._has_copy))
        peak = max(self._backward(activations), self._end(), self._step())
        rest = max(0, self._weights + states + peak - weights - gradients - states)
        return Need(self.options, weights, gradients, states, rest, self._main())

    @cached_property
    def _told(self) -> dict[str, Any]:
        config = fitted(deepspeed_config(self.options), self.sizes.trained)
        section: dict[str, Any] = config["zero_optimization"]
        return section

    @property
    def _stage(self) -> int:
        return int(self._told["stage"])

    @property
    def _width(self) -> int:
        return 4 if self.options.precision == "32-true" else 2

    @property
    def _own(self) -> float:
        """Numbers that a process trains."""
        return self.sizes.trained / self.options.processes

    @property
    def _offloaded(self) -> bool:
        return self.options.offload != "none"

    @property
    def _has_copy(self) -> bool:
        """Whether what is trained is there in float32 beside itself (stage3.py, _create_fp32_partitions)."""
        return self._stage == 2 or self._width == 2 or self._offloaded

    @property
    def _held(self) -> int:
        """Bytes of all parameters, as ZeRO holds them."""
        sizes = self.sizes
        return sizes.weight_bytes - sizes.buffer_bytes if self._width == 4 else sizes.all * self._width

    @property
    def _weights(self) -> int:
        """Bytes of parameters, and of all buffers, that are on the device all the time."""
        sizes = self.sizes
        whole = sizes.buffer_bytes if self._width == 4 else sizes.buffers * self._width
        if self._stage == 2:
            return whole + self._held
        return whole + (0 if self.options.offload == "all" else self._held // self.options.processes)

    @property
    def _gathered(self) -> int:
        """Bytes of parameters that are gathered at a time, and of the flat buffer in which the next ones come.

        They are limited by ``stage3_max_live_parameters`` (partitioned_param_coordinator.py, _fetch_sub_module_impl);
        those that are always there (``stage3_param_persistence_threshold``) are among them. Parameters gathered
        together are copied out of a buffer (partition_parameters.py, AllGatherCoalescedHandle), at most
        ``stage3_prefetch_bucket_size`` ahead. One process has nothing to gather (_no_gather_coalesced).
        """
        if self._stage == 2:
            return 0
        sizes, told, alone = self.sizes, self._told, self.options.processes == 1
        live: int = min(sizes.all, max(told.get("stage3_max_live_parameters", _LIVE), sizes.module))
        if alone:
            return live * self._width if self.options.offload == "all" else 0
        ahead: int = min(sizes.all, told.get("stage3_prefetch_bucket_size", _PREFETCH))
        return (live + ahead) * self._width

    @property
    def _gradients(self) -> int:
        """Bytes of a process's own gradients, which with offload are in main memory (``grad_partitions_flat_buffer``).

        In stage 2 those summed up so far are kept beside those of the micro-batch (stage_1_and_2.py,
        independent_gradient_partition_epilogue), and with offload there is a buffer for one parameter's.
        """
        if self._offloaded:
            return self.sizes.largest * self._width if self._stage == 2 else 0
        return round(self._own * self._width) * (2 if self._summed_apart else 1)

    @property
    def _summed_apart(self) -> bool:
        return self._stage == 2 and self.options.accumulate > 1 and not self._offloaded

    @property
    def _buckets(self) -> int:
        """Bytes of the buckets, allocated in full; stage 2 fills one while the other is sent (setup_buckets).

        On a CPU what is allocated and never written takes no memory, such as the second of two that each hold all.
        """
        size = int(self._told["reduce_bucket_size"])
        most = size * (2 if self._stage == 2 and self._told.get("overlap_comm") else 1)
        return (most if self.on_gpu else min(most, max(size, self.sizes.trained))) * self._width

    @property
    def _many(self) -> bool:
        """Whether one bucket is too small for all gradients, so that some are sent while others are to come."""
        return bool(self.sizes.trained > self._told["reduce_bucket_size"])

    @property
    def _sent(self) -> int:
        """Bytes of the flat copy of a bucket that is sent, or of a gradient too large for one.

        As in reduce_scatter_coalesced (../comm/coalesced_collectives.py) and allreduce_bucket (stage_1_and_2.py).
        """
        return int(max(self._told["reduce_bucket_size"], self.sizes.largest) * self._width)

    def _backward(self, activations: int) -> int:
        """Return the bytes beside weights and states at most; a bucket that holds all is sent behind it.

        When the first of several buckets is sent, about as large a share of activations is gone as of gradients is
        there (ours). In stage 2 gradients appear then, and buckets are new in each pass, so that those of a CPU fill as
        activations go.
        """
        now = self._gathered + activations + self._buckets + self._gradients
        if self._many:
            gone = round(activations * int(self._told["reduce_bucket_size"]) / self.sizes.trained)
            return now + max(0, self._sent - gone)
        if self._stage == 3:
            return now
        first = 0 if self._offloaded else round(self._own * self._width)
        return now - first - (0 if self.on_gpu else self._buckets)

    def _end(self) -> int:
        module = min(self._gathered, self.sizes.module * self._width)
        return module + self._buckets + self._gradients + self._sent

    def _step(self) -> int:
        """Return the bytes beside weights and states in the optimizer's step, which offload moves to the CPU."""
        if self._offloaded:
            return 0
        kept = round(self._own * self._width)
        part = self.sizes.largest / (self.options.processes if self._stage == 3 else 1)
        step = self._step_2(kept) if self._stage == 2 else kept + self._step_3()
        return round(max(step, kept + part * _NORM)) + (self._buckets if self._stage == 3 else 0)

    def _step_2(self, kept: int) -> float:
        """Return the bytes of gradients and step in stage 2, group by group (stage_1_and_2.py, step).

        A group's gradients are laid flat and turned into float32 at once. Those of all groups lie in one buffer, which
        is let go with the last group's. Buckets are gone.
        """
        groups = [sum(group) / self.options.processes for group in self.sizes.groups]
        peaks = []
        for place, own in enumerate(groups):
            stays = kept if place < len(groups) - 1 else 0
            peaks += [kept + own * self._float32, stays + own * (_MASTER + self._at_once)]
        return max(peaks, default=0.0)

    def _step_3(self) -> float:
        """Return the bytes of a step in stage 3, one sub-group after the other (stage3.py, step).

        Of a sub-group the gradients are laid flat and turned into float32 (_prepare_fp32_grad_for_sub_group); then the
        optimizer steps it as one parameter. All other sub-groups have only what they always have.
        """
        return max(self._sub_groups, default=0) * max(self._float32, _MASTER + self._at_once)

    @property
    def _float32(self) -> int:
        """Bytes of a number while its gradient is turned into float32: flat as it is, and as float32."""
        return _MASTER if self._width == _MASTER else self._width + _MASTER

    @property
    def _at_once(self) -> float:
        return self.cost.at_once if self.on_gpu else self.cost.one_by_one

    @property
    def _sub_groups(self) -> list[int]:
        return self.sizes.sub_groups(self._told.get("sub_group_size", _SUB_GROUP), self.options.processes)

    def _main(self) -> int:
        """Return the bytes of main memory that a node's processes need for what is offloaded, and to step it."""
        if not self._offloaded:
            return 0
        own = self._main_2() if self._stage == 2 else self._main_3()
        return round(self.options.devices * (own + self._own * self.cost.states))

    def _main_2(self) -> float:
        """Return the bytes of a process: copy, gradients and what returns to the device (stage_1_and_2.py, __init__).

        With several micro-batches a step, their gradients are summed there (async_accumulate_grad_in_cpu_via_gpu).
        """
        half = self._own * self._width
        groups = [sum(group) / self.options.processes for group in self.sizes.groups]
        summed = half if self.options.accumulate > 1 else 0
        pinned = sum(2 * self._pinned(own * _MASTER) + self._pinned(own * self._width) for own in groups)
        buffer = self._pinned(self.sizes.largest * self._width)
        return pinned + summed + buffer + max(groups, default=0) * self.cost.one_by_one

    def _main_3(self) -> float:
        """Return the bytes of a process: copy, gradients as they are and in float32, and parameters (stage3.py)."""
        own = self._own * _MASTER + self._pinned(self._own * self._width)
        own += sum(self._pinned(numbers * _MASTER) for numbers in self._sub_groups)
        own += max(self._sub_groups, default=0) * self.cost.one_by_one
        if self.options.offload != "all":
            return own
        frozen = self._held / self.options.processes - self._own * self._width
        if self.options.offload_folder is None:
            return own + frozen + self._pinned(self._own * self._width)
        buffers = (self.sizes.together + SPARE_BUFFERS) * self.sizes.module / self.options.processes
        return own + (min(self._own, _IN_CPU) + buffers) * self._width

    def _pinned(self, size: float) -> float:
        """Return the bytes of a page-locked buffer, which torch rounds up to a power of two."""
        return float(1 << (max(1, round(size)) - 1).bit_length()) if self.on_gpu and size else size
