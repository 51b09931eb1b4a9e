"""The batch script of docs/slurm under bash: fusionbench and torchrun are real, the cluster's commands stand-ins."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from layouts import make_csv
from program import TABLE, THIRD_PARTY, new_store, runs, store, write_config

pytestmark = THIRD_PARTY
SCRIPT = Path(__file__).parents[2] / "docs" / "slurm" / "fit.sbatch"
# What SLURM does: it starts the step's command on each node, signals all processes of the step, and requeues.
COMMANDS = {
    "srun": 'while [[ $1 == -* ]]; do shift; done; echo $$ > "$CLUSTER/step"; export BATCH=$PPID; exec "$@"',
    "scancel": 'step=$(cat "$CLUSTER/step"); kill -TERM "$step" $(pgrep -P "$step")',
    "scontrol": 'if [[ $1 == show ]]; then echo localhost; else echo "$@" >> "$CLUSTER/requeued"; fi',
}
# Read by every Python at its start: at its fifth step a process of the run lets SLURM's warning come to the script.
PREEMPTED = """
import os, signal
from pathlib import Path
flag = Path(os.environ["CLUSTER"]) / "preempted"
if "RANK" in os.environ and not flag.exists():
    from fusionbench.task import FusionTask
    steps, step = [], FusionTask.training_step
    def counted(*arguments, **options):
        steps.append(1)
        if len(steps) == 5:
            flag.touch()
            os.kill(int(os.environ["BATCH"]), signal.SIGUSR1)
            signal.pause()
        return step(*arguments, **options)
    FusionTask.training_step = counted
"""


@pytest.fixture
def batch(tmp_path):
    """Return a function that runs the script as SLURM would, with what the script's command line is to have."""
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    for name, script in COMMANDS.items():
        (cluster / name).write_text(f"#!/bin/bash\n{script}\n")
        (cluster / name).chmod(0o755)
    (cluster / "sitecustomize.py").write_text(PREEMPTED)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    own = {"PYTHON": sys.executable, "PORT": str(port), "CLUSTER": str(cluster), "FUSIONBENCH_ID_KEY": "a key"}
    own |= {k: os.pathsep.join([str(cluster), *filter(None, [os.environ.get(k)])]) for k in ("PATH", "PYTHONPATH")}
    own |= {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "here"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MLFLOW_"))}

    def run(*arguments):
        command = ["bash", str(SCRIPT), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=kept | own, capture_output=True, text=True, check=False)

    return run


def test_a_job_that_is_preempted_is_requeued_and_goes_on_with_its_run(tmp_path, batch):
    modalities = {name: {"kind": "table", "columns": [name]} for name in ("age", "sex")}
    tree = {
        "data": {"name": "csv", "path": str(make_csv(tmp_path, patients=16)), "modalities": modalities},
        "encoder": TABLE,
        "fusion": {"name": "concat"},
        "trainer": {"max_epochs": 5, "patience": 0, "progress": False, "accelerator": "cpu"},
        "tracking": {"folder": str(new_store(tmp_path / "runs"))},
    }
    config = write_config(tmp_path / "fit.yaml", tree)
    first = batch("--config", config)
    assert first.returncode not in (0, 2), first.stderr
    assert (tmp_path / "cluster" / "preempted").exists(), first.stderr
    assert (tmp_path / "cluster" / "requeued").read_text() == "requeue 7\n"
    (stopped,) = runs(store(tmp_path / "runs"))
    assert stopped.info.status == "KILLED"

    second = batch("--config", config)
    assert second.returncode == 0, second.stderr
    (ended,) = runs(store(tmp_path / "runs"))
    assert f"going on with run {ended.info.run_id}" in second.stderr
    assert (ended.info.run_id, ended.info.status) == (stopped.info.run_id, "FINISHED")
    assert (tmp_path / "cluster" / "requeued").read_text() == "requeue 7\n", "once"

    wrong = batch("--config", config, "trainer.max_epoch=1")
    assert wrong.returncode != 0
    assert "did you mean 'max_epochs'?" in wrong.stderr
    assert (tmp_path / "cluster" / "requeued").read_text() == "requeue 7\n", "a mistake is not tried again"


def test_slurm_warns_the_script_and_may_requeue_it():
    asked = {line.removeprefix("#SBATCH --") for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")}
    assert {"requeue", "open-mode=append", f"signal=B:{signal.SIGUSR1.name.removeprefix('SIG')}@120"} <= asked
