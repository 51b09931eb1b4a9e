"""Networks of shapes alone: what a config builds, on the ``meta`` device, with no weights file opened or fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_ACTIVE = ContextVar("skeleton", default=False)


@contextmanager
def skeleton() -> Iterator[None]:
    """Build in here networks of any size in seconds and little memory, to be counted and checked but not to be run.

    Parameters and buffers are on ``meta``. Of pretrained encoders the config is read (``config.json``, timm's own) and
    the weights are not, so a folder without any is enough; whether they are there and fit is not found out. Shapes,
    types and what is trained are those of the real network. Contexts nest; each thread has its own.
    """
    token = _ACTIVE.set(True)
    try:
        with torch.device("meta"):
            yield
    finally:
        _ACTIVE.reset(token)


def is_skeleton() -> bool:
    """Whether a network of shapes alone is being built; whoever reads weights asks, and leaves it."""
    return _ACTIVE.get()
