"""What a machine lacks is said in one sentence before a run is started: precision, space, and what builds async_io."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from fusionbench.distributed import checks, on_disk, spare_memory
from fusionbench.distributed.checks import check, held_bytes
from fusionbench.distributed.prepare import prepare_deepspeed
from fusionbench.errors import UserError
from fusionbench.sections import TrainerOptions

GB = 10**9
ALL = ("32-true", "bf16-mixed", "bf16-true", "16-mixed")


def refused(trainable: int = 0, total_bytes: int = 0, **given) -> str:
    with pytest.raises(UserError) as error:
        check(TrainerOptions(**given), 12, trainable, total_bytes, 1)
    return str(error.value)


@pytest.mark.parametrize("strategy", ["auto", "zero2", "zero3"])
def test_float16_on_a_cpu_is_refused(strategy: str) -> None:
    told = refused(strategy=strategy, precision="16-mixed", accelerator="cpu")
    assert told.startswith("trainer.precision=16-mixed needs a GPU, and this run is on the CPU; set trainer.precision=")
    check(TrainerOptions(strategy=strategy, precision="bf16-mixed", accelerator="cpu"), 12, 0, 0, 1)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16_on_a_gpu_without_it_is_refused(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert "needs a GPU with bfloat16" in refused(precision=precision)
    check(TrainerOptions(precision="16-mixed"), 12, 0, 0, 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    check(TrainerOptions(precision=precision), 12, 0, 0, 1)


def test_space_is_asked_for_in_the_type_that_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.ModuleList([nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False, dtype=torch.bfloat16)])
    sizes = {p: held_bytes(TrainerOptions(strategy="zero3", precision=p), network.parameters()) for p in ALL}
    assert sizes == {"32-true": 600, "bf16-mixed": 400, "bf16-true": 400, "16-mixed": 400}
    assert held_bytes(TrainerOptions(precision="bf16-mixed"), network.parameters()) == 600
    monkeypatch.setattr(spare_memory, "spare_memory", lambda: GB)
    given = {"strategy": "zero3", "offload": "optimizer", "trainable": 10**8}
    assert "2.0 GB into main memory, which has 1.0 GB" in refused(**given)
    assert "1.8 GB into main memory" in refused(**given, precision="bf16-mixed")


@pytest.mark.parametrize(
    ("listed", "folder", "names"),
    [
        ("0::/slurm/job_7\n", "slurm/job_7", ("memory.max", "memory.current", "inactive_file")),
        (
            "5:cpu:/slurm\n3:memory:/slurm/job_7\n",
            "memory/slurm/job_7",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_memory_is_what_the_narrowest_control_group_leaves(
    listed: str, folder: str, names: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, own, listing = tmp_path / "cgroup", tmp_path / "cgroup" / folder, tmp_path / "listed"
    own.mkdir(parents=True)
    listing.write_text(listed)
    limits = {own: 5 * GB, own.parent: 20 * GB}
    for group, limit in limits.items():
        (group / names[0]).write_text(f"{limit}\n")
        (group / names[1]).write_text(f"{3 * GB}\n")
        (group / "memory.stat").write_text(f"anon {GB}\n{names[2]} {GB}\n")
    assert spare_memory.group_spares(listing, groups) == [3 * GB, 18 * GB]
    monkeypatch.setattr(spare_memory, "group_spares", lambda *places: [3 * GB])
    for available, spare in ((2 * GB, 2 * GB), (8 * GB, 3 * GB)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=available: SimpleNamespace(available=free))
        assert spare_memory.spare_memory() == spare


def test_groups_without_a_limit_leave_all(tmp_path: Path) -> None:
    (tmp_path / "listed").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert spare_memory.group_spares(tmp_path / "listed", tmp_path) == []
    assert spare_memory.group_spares(tmp_path / "not there", tmp_path) == []


def test_what_builds_async_io_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_deepspeed(on_gpu=False)
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils import cpp_extension

    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: True)
    monkeypatch.setenv("CXX", "python3")  # some program
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda builder, verbose: False)
    given = {"strategy": "zero3", "offload": "all", "offload_folder": str(tmp_path)}
    assert "can't be built here without libaio's headers (libaio-dev); install that" in refused(**given)
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda builder, verbose: True)
    check(TrainerOptions(**given), 12, 0, 0, 1)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr(checks, "_on_gpu", lambda options: True)
    monkeypatch.setattr(on_disk, "prepare_deepspeed", lambda on_gpu: None)
    monkeypatch.setattr(checks, "_devices", lambda options: (1, "GPU"))
    assert "without the CUDA toolkit (nvcc, or CUDA_HOME)" in refused(**given)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "without a C++ compiler (g++) and the CUDA toolkit" in refused(**given)
