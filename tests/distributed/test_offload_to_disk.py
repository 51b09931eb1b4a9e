"""Parameters that lie in a folder while they are not needed: whose it is, and how large buffers are."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pairs import run_pair
from test_zero_memory import MADE, network, write_decoder
from tiny import batch, criterion
from torch import nn
from torch.utils.data import DataLoader
from zero_trials import Watch, options, trainer

from fusionbench.distributed import on_disk
from fusionbench.distributed.deepspeed_config import deepspeed_config
from fusionbench.layers import sharded
from fusionbench.layers.frozen import settled_checksum, trained_state
from fusionbench.optim.optimizers.sgd import sgd
from fusionbench.optim.schedulers.constant import constant
from fusionbench.sections import TrainerOptions
from fusionbench.task import FusionTask


def train_twice(decoder: Path, folder: Path) -> dict[str, Any]:
    """Train a step with all parameters on the GPU, then with those offloaded to a folder, beside a killed run's."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    return {
        "whole": train(decoder, folder / "whole", {}, disk),
        "disk": train(decoder, folder / "offloaded", {"offload": "all", "offload_folder": str(disk)}, disk),
        "left": sorted(path.name for path in disk.iterdir()) if dist.get_rank() == 0 else [],
    }


def train(decoder: Path, folder: Path, given: dict[str, Any], disk: Path) -> dict[str, Any]:
    """Train a step; return what came of it and which files there were on the disk."""
    made = FusionTask(MADE, partial(network, decoder), partial(sgd, lr=0.01), constant, criterion(MADE))
    watch = Watch()
    fitted = trainer(options("zero3", max_epochs=2, **given), folder, watch)
    torch.manual_seed(1)
    cases = DataLoader([batch(MADE, 2)], batch_size=None)
    fitted.fit(made, cases, cases)
    files = [path.relative_to(disk).parts for path in disk.rglob("*.swp")]
    fitted.predict(made, cases, return_predictions=False)
    out = {"losses": watch.losses, "state": trained_state(made.strategy), "files": files}
    out["logits"] = torch.tensor(made.gathered()["logits"])
    dist.barrier()
    fitted.strategy.release()
    dist.barrier()
    return out


@pytest.mark.slow  # the first time DeepSpeed compiles for minutes
@pytest.mark.skipif(on_disk.missing(on_gpu=False) != "", reason="DeepSpeed's async_io can't be built here")
def test_a_run_from_a_disk_is_one_from_memory_and_leaves_nothing(tmp_path: Path) -> None:
    write_decoder(tmp_path / "decoder")
    first, second = run_pair(train_twice, tmp_path / "decoder", tmp_path)
    assert first["left"] == []
    for rank in (first, second):
        assert len({parts[0] for parts in rank["disk"]["files"]}) == 2  # a folder for each process
        assert rank["disk"]["losses"] == pytest.approx(rank["whole"]["losses"], rel=1e-6)
        torch.testing.assert_close(rank["disk"]["state"], rank["whole"]["state"])
        torch.testing.assert_close(rank["disk"]["logits"], rank["whole"]["logits"])


def test_a_process_has_a_folder_of_its_own_and_removes_those_of_the_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    machine = socket.gethostname()
    dead = tmp_path / f"fusionbench_{machine}_{child.pid}_x"
    kept = [
        tmp_path / name
        for name in ("mine", f"fusionbench_{machine}_{os.getppid()}_x", f"fusionbench_other_{child.pid}_x")
    ]
    for folder in (dead, *kept):
        folder.mkdir()
        (folder / "part.swp").touch()
    one, other = on_disk.make_own(tmp_path), on_disk.make_own(tmp_path)
    assert one.name.startswith(f"fusionbench_{machine}_{os.getpid()}_")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, one, other])
    on_disk.remove(one)
    on_disk.remove(one)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, other])


def test_a_buffer_takes_the_largest_part_of_a_parameter(tmp_path: Path) -> None:
    given = TrainerOptions(strategy="zero3", devices=2, offload="all", offload_folder=str(tmp_path))
    before = deepspeed_config(given)
    config, own = on_disk.config_for(before, 525_000_000, 3)
    section = config["zero_optimization"]["offload_param"]
    assert (section["buffer_size"], section["buffer_count"]) == (525_000_000, 7)
    assert (section["nvme_path"], section["device"]) == (str(own), "nvme")
    assert before["zero_optimization"]["offload_param"]["nvme_path"] == str(tmp_path)
    assert own.parent == tmp_path
    assert on_disk.offloads(config)
    assert not on_disk.offloads(deepspeed_config(TrainerOptions(strategy="zero3", offload="all")))


def test_the_largest_parameter_and_how_many_go_together_is_told_before_any_is_parted() -> None:
    """An LSTM has 4 parameters of its own, and is in a module that has 1."""
    seen: list[Any] = []
    outer = nn.PReLU()
    outer.inner = nn.ModuleList([nn.Linear(4, 50), nn.LSTM(2, 2), nn.Linear(3, 4)])
    with sharded.building(lambda parameter: seen.append(parameter.shape), lambda *told: seen.append(told)):
        settled_checksum(outer)
    assert seen[0] == (200, 5)
    assert len(seen) == 1 + 1 + 4 + 4
