"""What is needed: bytes on each GPU, and of main memory on each node."""

from __future__ import annotations

from dataclasses import dataclass

from fusionbench.sections import TrainerOptions


@dataclass(frozen=True)
class Need:
    """Bytes on each GPU, and of main memory on each node.

    Attributes:
        options: Under which options.
        weights: Parameters and buffers; with stage 3 those gathered as well.
        gradients: With the buckets in which they travel.
        optimizer: States, and with ZeRO the float32 copy.
        activations: Whatever else is alive at the peak of a forward and backward pass, or of a step of the optimizer.
        main: Main memory on each node for what is offloaded.
    """

    options: TrainerOptions
    weights: int
    gradients: int
    optimizer: int
    activations: int
    main: int = 0

    @property
    def total(self) -> int:
        """Bytes on each GPU."""
        return self.weights + self.gradients + self.optimizer + self.activations
