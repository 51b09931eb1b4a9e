"""A folder on a disk for the parameters that ``trainer.offload_folder`` takes: what it asks for, and whose it is.

DeepSpeed clears the folder that it is given and never removes it. So each process has one of its own below the user's.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

import psutil

from fusionbench.distributed.deepspeed_config import SPARE_BUFFERS
from fusionbench.distributed.prepare import prepare_deepspeed

_PREFIX = "fusionbench"


def missing(on_gpu: bool) -> str:
    """Return what is not there of what DeepSpeed needs to read and write parameters on a disk; empty: nothing.

    Args:
        on_gpu: Whether the run is on GPUs.
    """
    prepare_deepspeed(on_gpu)
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils import cpp_extension

    builder = AsyncIOBuilder()
    if _is_built(builder.name):
        return ""
    wanted = {
        "a C++ compiler (g++)": shutil.which(os.environ.get("CXX", "c++")) is not None,
        "ninja": cpp_extension.is_ninja_available(),
        "the CUDA toolkit (nvcc, or CUDA_HOME)": not on_gpu or cpp_extension.CUDA_HOME is not None,
    }
    lacking = [what for what, found in wanted.items() if not found]
    if not lacking and not builder.is_compatible(verbose=False):
        lacking = ["libaio's headers (libaio-dev)"]
    return " and ".join(lacking)


def _is_built(name: str) -> bool:
    """Whether DeepSpeed was installed with an op compiled, so that nothing is built here."""
    from deepspeed.git_version_info import installed_ops

    return bool(installed_ops.get(name, False))


def make_own(folder: Path) -> Path:
    """Make this process a folder below the user's, and remove those that processes of this machine left as they died.

    Args:
        folder: The user's, on a disk of this machine.
    """
    for old in folder.glob(f"{_PREFIX}_{socket.gethostname()}_*"):
        process = old.name.rsplit("_", 2)[1]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            remove(old)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}_{socket.gethostname()}_{os.getpid()}_", dir=folder))


def remove(folder: Path) -> None:
    """Remove such a folder; another process may be about it too."""
    shutil.rmtree(folder, ignore_errors=True)


def offloads(config: dict[str, Any]) -> bool:
    """Whether a config of DeepSpeed's keeps parameters on a disk."""
    return bool(config["zero_optimization"].get("offload_param", {}).get("device") == "nvme")


def config_for(config: dict[str, Any], largest: int, together: int) -> tuple[dict[str, Any], Path]:
    """Return a config for this process, and the folder of its own in it.

    Args:
        config: What ``deepspeed_config`` returned for a run that offloads to a folder.
        largest: Numbers in this process's part of the largest parameter, which a buffer must take.
        together: Parameters that are gathered together, each of which holds a buffer meanwhile.
    """
    section = dict(config["zero_optimization"])
    own = make_own(Path(section["offload_param"]["nvme_path"]))
    section["offload_param"] = {**section["offload_param"], "nvme_path": str(own), "buffer_size": max(1, largest)}
    section["offload_param"]["buffer_count"] = together + SPARE_BUFFERS
    return {**config, "zero_optimization": section}, own
