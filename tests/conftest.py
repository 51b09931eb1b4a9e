"""What every test shares: one thread and a fixed seed, so that numbers do not depend on machine or order."""

import pytest

import fusionbench  # noqa: F401 - before torchvision, which else does not import beside a CPU build of torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Let torch use one thread: tiny tensors gain nothing from more, and sums keep their order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state."""
    import torch

    torch.manual_seed(0)
