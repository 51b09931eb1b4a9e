"""Estimates against the measured peak of two steps of training in a fresh process."""

import json
import os
import subprocess
import sys

import pytest
from planned import write_planned

from fusionbench import build, config
from fusionbench.plan.measure import ALLOCATOR
from fusionbench.plan.training_plan import TrainingPlan

WITHIN = 0.15


def measured(path, *overrides):
    """Return the peak of resident memory above what was resident before the network was built."""
    environment = {**os.environ, **ALLOCATOR, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "fusionbench.plan.measure", "--config", str(path), *overrides]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def estimated(path, *overrides):
    checked = config.load(path, overrides)
    plan = TrainingPlan(checked, build.data(checked), on_gpu=False)
    return plan.needs(plan.cases)[0].total


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_planned(tmp_path_factory.mktemp("planned"))


def test_the_estimate_is_within_15_percent(paths):
    assert estimated(paths["llama2"]) == pytest.approx(measured(paths["llama2"]), rel=WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("trainer.precision=bf16-mixed",)])
@pytest.mark.parametrize("name", ["ei", "llama2", "mdf"])
def test_the_estimate_of_each_family_is_within_15_percent(paths, name, overrides):
    assert estimated(paths[name], *overrides) == pytest.approx(measured(paths[name], *overrides), rel=WITHIN)


def test_checkpointing_and_half_precision_show_by_themselves(paths):
    plain, recomputed, half = (
        estimated(paths["llama2"], *overrides)
        for overrides in ((), ("trainer.checkpointing=true",), ("trainer.precision=bf16-true",))
    )
    assert recomputed < 0.6 * plain
    assert half < 0.7 * plain
