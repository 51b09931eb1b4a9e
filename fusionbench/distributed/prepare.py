"""DeepSpeed, imported so that it is quiet and compiles nothing that a run does not need."""

from __future__ import annotations

import logging
import os
import warnings


def prepare_deepspeed(on_gpu: bool) -> None:
    """Import DeepSpeed so that it is quiet and, on a CPU, compiles nothing.

    Its one op for the CPU is for ``inference_all_reduce``, which training never calls; so no compiler is needed.

    Args:
        on_gpu: What it shall run on, which it reads at its first import.
    """
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops
    logger.setLevel(logging.ERROR)
    if not on_gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
