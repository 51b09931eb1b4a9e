"""The check list for GPUs, small on the CPU: the script itself, and what it says where there is no GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import Row, Way


def rows(zero: float, error: str = "") -> list[Row]:
    """Return what four runs of a model gave, the losses under ZeRO-3 being off by a share."""
    made = [Row("EI", way, 2**30, 2**30, 5.0, (1.0, 0.5)) for way in gpu_check.ways(2)]
    return [
        dataclasses.replace(row, losses=(1.0, 0.5 * (1 + zero)), error=error) if row.way.strategy == "zero3" else row
        for row in made
    ]


def test_a_machine_without_a_gpu_is_told_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().err == "error: there is no GPU here; take a machine with one, or give --cpu\n"


@pytest.mark.parametrize("devices", [1, 4])
def test_every_device_is_used_with_and_without_sharding(devices: int) -> None:
    ways = gpu_check.ways(devices)
    assert Way("auto", "32-true", 1) in ways
    assert Way("zero3", "bf16-true", devices) in ways
    assert (Way("ddp", "32-true", devices) in ways) is (devices > 1)


def test_losses_that_differ_and_runs_that_fail_are_found() -> None:
    assert [holds for holds, _ in gpu_check.verdicts(rows(1e-5), ["EI"], on_cpu=True)] == [True]
    assert [holds for holds, _ in gpu_check.verdicts(rows(1e-2), ["EI"], on_cpu=True)] == [False]
    failed = list(gpu_check.verdicts(rows(0, "error: no memory"), ["EI"], on_cpu=True))
    assert not any(holds for holds, _ in failed)
    assert "no memory" in failed[0][1]


@pytest.mark.parametrize(("planned", "holds"), [(1.14, True), (0.86, True), (1.16, False), (0.84, False)])
def test_on_a_gpu_the_plan_must_be_near_what_was_measured(planned: float, holds: bool) -> None:
    made = [dataclasses.replace(row, planned=planned * row.peak) for row in rows(0)]
    memory = list(gpu_check.verdicts(made, ["EI"], on_cpu=False))[:-1]
    assert [found for found, _ in memory] == [holds] * len(made)
    assert f"planned {planned:.2f} GB, measured 1.00: {planned - 1:+.0%}" in memory[0][1]
    assert gpu_check.cells(made[0])[4:7] == [f"{planned:.2f}", "1.00", f"{planned - 1:+.0%}"]
    assert [found for found, _ in gpu_check.verdicts(made, ["EI"], on_cpu=True)] == [True]


@pytest.mark.slow
@pytest.mark.assets
def test_the_whole_list_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--cpu", "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert all(out.count(f"| {model} ") == len(gpu_check.ways(2)) for model in gpu_check.MODELS)
    assert "failed" not in out
