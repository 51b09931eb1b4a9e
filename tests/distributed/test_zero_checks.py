"""What is refused before any process starts, and the config that DeepSpeed gets."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch

from fusionbench.distributed import checks
from fusionbench.distributed.checks import check
from fusionbench.distributed.deepspeed_config import deepspeed_config
from fusionbench.distributed.strategy import strategy
from fusionbench.errors import UserError
from fusionbench.sections import TrainerOptions

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(checks.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


def refused(world_size: int = 1, batch_size: int = 12, trainable: int = 0, total_bytes: int = 0, **given) -> str:
    with pytest.raises(UserError) as error:
        check(TrainerOptions(**given), batch_size, trainable, total_bytes, world_size)
    return str(error.value)


def test_what_works_is_let_through() -> None:
    check(TrainerOptions(), 1, 10**12, 10**15, 1)
    check(TrainerOptions(devices=4), 12, 1000, 4000, 1)
    check(TrainerOptions(devices=4, num_nodes=2, strategy="ddp"), 16, 1000, 4000, 8)
    check(TrainerOptions(devices=2, strategy="zero3", offload="all"), 12, 1000, 4000, 1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"devices": 5}, "this machine has 4 cores to run on; set it to 4"),
        ({"devices": 0}, "'trainer.devices' must be at least 1"),
        ({"devices": 2, "num_nodes": 2}, "this process was started alone"),
        ({"devices": 2, "batch_size": 5}, "can't be shared out among 2 devices; give a multiple of 2, e.g. 4"),
        ({"devices": 2, "offload": "optimizer"}, "trainer.offload needs ZeRO, but trainer.strategy is auto"),
        ({"strategy": "ddp", "offload_folder": "/tmp"}, "trainer.offload needs ZeRO"),
        ({"strategy": "zero3", "stop": "per_part"}, "zero3 can't; set trainer.strategy=ddp or trainer.stop=whole"),
        ({"strategy": "zero2", "offload": "all"}, "trainer.offload=all needs trainer.strategy=zero3"),
        ({"strategy": "zero3", "offload": "optimizer", "offload_folder": "."}, "set trainer.offload=all, or no folder"),
        ({"strategy": "zero3", "offload": "all", "offload_folder": "/no/where"}, "'/no/where' is no folder"),
    ],
)
def test_what_cannot_work_is_refused(given: dict, sentence: str) -> None:
    assert sentence in refused(**given)


def test_zero_asks_for_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert "pip install 'fusionbench-medical[deepspeed]'" in refused(strategy="zero3", devices=2)


def test_offload_asks_for_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = namedtuple("Memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(10**9))
    given = {"strategy": "zero3", "devices": 2, "trainable": 10**8}
    assert "2.0 GB into main memory, which has 1.0 GB" in refused(**given, offload="optimizer")
    assert "24.0 GB into main memory" in refused(**given, offload="all", total_bytes=22 * 10**9)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: Usage(0, 0, 10**10))
    monkeypatch.setattr("fusionbench.distributed.on_disk.missing", lambda on_gpu: "")
    folder = {"offload": "all", "offload_folder": str(tmp_path), "total_bytes": 22 * 10**9}
    assert f"22.0 GB into trainer.offload_folder '{tmp_path}', which has 10.0 GB" in refused(**given, **folder)


def test_plain_options_become_one_config() -> None:
    made = deepspeed_config(
        TrainerOptions(
            strategy="zero3",
            precision="bf16-true",
            accumulate=3,
            gradient_clip=0.5,
            offload="all",
            offload_folder="/fast",
        )
    )
    zero = made["zero_optimization"]
    assert (zero["stage"], made["bf16"], made["gradient_accumulation_steps"]) == (3, {"enabled": True}, 3)
    assert (made["gradient_clipping"], "optimizer" in made) == (0.5, False)
    assert (zero["offload_optimizer"]["device"], zero["offload_param"]["device"]) == ("cpu", "nvme")
    assert zero["offload_param"]["nvme_path"] == "/fast"
    assert "offload_param" not in deepspeed_config(TrainerOptions(strategy="zero2", offload="optimizer"))
    assert deepspeed_config(TrainerOptions(strategy="ddp", devices=2)) == {}


def test_one_device_needs_no_strategy_and_several_are_ddp() -> None:
    assert strategy(TrainerOptions()) == strategy(TrainerOptions(strategy="ddp")) == "auto"
    assert type(strategy(TrainerOptions(devices=2))).__name__ == "DDPStrategy"
