"""Two processes that run one function of a test module together, as ranks of a gloo process group on the CPU."""

from __future__ import annotations

import json
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fusionbench import _torchvision  # noqa: F401 - the processes import what a test module does, in any order

PATIENCE = timedelta(seconds=120)  # a collective that one rank never enters ends as an error, not as a hang
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",  # read by deepspeed's first import
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
}


class PairError(AssertionError):
    """A rank failed; the message holds the traceback of each rank that did, the first to fail first."""


def run_pair(function: Callable[..., Any], *arguments: Any, group: bool = True) -> list[Any]:
    """Run a function in two fresh processes and return what rank 0 and rank 1 return.

    Starting costs some seconds of imports, so let one pair make many checks and return their results: a module-scoped
    fixture runs the pair, parametrised tests look at a result each.

    Args:
        function: One of a module's own, so that it can be pickled by name. It may end the group, but need not.
        *arguments: Whatever can be pickled.
        group: The process group is joined before the call; else ``function`` joins it, or has somebody do so, by the
            environment variables that torchrun sets.

    Raises:
        PairError: A rank failed; the other one was ended.
    """
    with tempfile.TemporaryDirectory() as logs, _handlers_kept(), mock.patch.dict(os.environ, ENVIRONMENT):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=2,
            run_id=Path(logs).name,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # a free port
            local_addr="127.0.0.1",
            max_restarts=0,
            shutdown_timeout=5,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            found = elastic_launch(config, _rank)(function, arguments, group)
        except ChildFailedError as error:
            raise PairError(_tracebacks(Path(logs)) or str(error)) from None
    return [pickle.loads(found[rank]) for rank in range(2)]


def _rank(function: Callable[..., Any], arguments: tuple[Any, ...], group: bool) -> bytes:
    """Be one rank; tensors return as bytes, since shared memory ends with the process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if group:
        torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    out = pickle.dumps(function(*arguments))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return out


def _tracebacks(logs: Path) -> str:
    """Return what the ranks that failed wrote, in the order of time: the first is the cause."""
    read = [json.loads(path.read_text())["message"] for path in logs.rglob("error.json")]
    read = sorted(read, key=lambda message: float(message["extraInfo"]["timestamp"]))
    return "\n".join(message["extraInfo"]["py_callstack"] for message in read)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put the signal handlers back that the elastic agent replaces."""
    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
