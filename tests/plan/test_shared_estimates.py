"""Estimates against the measured peak of each of two processes on a CPU that train together.

What differs from GPUs: gloo copies what it sends, and memory that is allocated and never written takes none.
"""

import pytest
from distributed.pairs import run_pair
from planned import write_planned

from fusionbench import build, config
from fusionbench.plan.measure import ALLOCATOR, measure
from fusionbench.plan.training_plan import TrainingPlan

WITHIN = 0.15
# All is trained and batches are small, so that weights, gradients and states are most of what is measured.
OWN = {
    "ei": ("encoder.model=vit_tiny_patch16_224",),
    "llama2": (),
    "mdf": (),
}


def measured(path, overrides):
    """Be one process; return the peak of its resident memory above what was there before the network was built."""
    return measure(config.load(path, overrides), steps=3)


def estimated(path, overrides):
    checked = config.load(path, overrides)
    plan = TrainingPlan(checked, build.data(checked), on_gpu=False)
    found = {(need.options.strategy, need.options.offload): need.total for need in plan.needs(plan.cases)}
    return found[checked.trainer.strategy, checked.trainer.offload]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_planned(tmp_path_factory.mktemp("planned"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
@pytest.mark.parametrize("name", list(OWN))
def test_the_estimate_for_two_processes_is_within_15_percent(paths, name, strategy, monkeypatch):
    for variable, value in ALLOCATOR.items():
        monkeypatch.setenv(variable, value)
    told = ("adapt.name=full", "data.batch_size=2", "trainer.devices=2", f"trainer.strategy={strategy}", *OWN[name])
    assert estimated(paths[name], told) == pytest.approx(max(run_pair(measured, paths[name], told)), rel=WITHIN)
