"""``ablate --launcher slurm``: its jobs by submitit's local executor, in real processes, and what SLURM is told."""

import os
import signal
import sys
from pathlib import Path
from unittest import mock

import pytest
from program import THIRD_PARTY, refused, runs, store
from sweeping import ENVIRONMENT, ablate, cells, in_child, once, results, write_table

from fusionbench.__main__ import main
from fusionbench.ablate import slurm
from fusionbench.report import run_report
from fusionbench.task import FusionTask

pytestmark = THIRD_PARTY
SLURM = ("--launcher", "slurm", "--slurm", "time=60")


class Struck(slurm.Errand):
    """An errand whose first process meets a signal at a training step; which one, its fusion says.

    Args:
        place: Takes the flags that it has happened.
        blows: By the name of the fusion: the signal, and the process that meets it; 0: its own.
    """

    def __init__(self, place, blows):
        self.place, self.blows = place, blows

    def __call__(self, order):
        name = order.config.fusion["name"]
        number, process = self.blows.get(name, (0, 0))
        flag = self.place / f"struck_{name}_{number}"
        if not number:
            flag.touch()

        def strike():
            os.kill(process or os.getpid(), number)
            if process:
                signal.pause()  # until the sweep ends this process

        with once(flag, FusionTask, "training_step", 5, strike), mock.patch.object(run_report, "draw", return_value=[]):
            return super().__call__(order)


@pytest.fixture
def by_jobs(tmp_path, monkeypatch):
    """Return a function that gives the signals that jobs of this machine meet, which stand for a cluster's."""
    here = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*here, *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    monkeypatch.setattr(slurm, "LOOK", 0.1)

    def give(**blows):
        monkeypatch.setattr(slurm, "Errand", lambda: Struck(tmp_path, blows))

    return give


@pytest.mark.slow
def test_jobs_that_are_stopped_preempted_or_killed_end_as_if_nothing_had_happened(folder, tmp_path, by_jobs):
    table = write_table(folder, "jobs", base="base.yaml", columns={"five epochs": {"trainer": {"max_epochs": 5}}})
    place = tmp_path / "runs"
    undisturbed = ablate(table, tmp_path / "undisturbed")
    assert undisturbed.code == 0, undisturbed.err

    def stopped():
        by_jobs(mean=(signal.SIGINT, os.getpid()))
        sys.stdout = sys.stderr = (tmp_path / "stopped.log").open("w")
        os.environ.update(ENVIRONMENT)
        where = (f"tracking.folder={place}", "--results", str(place / "results"))
        return main(["ablate", "--config", str(table), "--rows", "mean", *where, *SLURM])

    assert in_child(stopped) == 130, (tmp_path / "stopped.log").read_text()
    assert (tmp_path / f"struck_mean_{signal.SIGINT}").exists()
    status = {run.data.tags["fusionbench.level"]: run.info.status for run in runs(store(place))}
    assert status == dict.fromkeys(("table", "row", "seed"), "KILLED")
    begun = {run.info.run_id for run in runs(store(place))}

    by_jobs(mean=(signal.SIGUSR2, 0), concat=(signal.SIGKILL, 0))
    done = ablate(table, place, *SLURM, "--parallel", 2)
    assert done.code == 1, done.err
    assert "note: jobs write to SQLite" in done.err
    log = next(path.read_text() for path in (place / "jobs").glob("*.out") if "Requeued job" in path.read_text())
    assert log.count("Starting with JobEnvironment") == 2
    made = cells(place, "jobs").set_index("row")
    assert made["status"].to_dict() == {"mean": "finished", "concat": "failed"}
    assert made.loc["mean", "run_id"] in begun, "it goes on with the run that Ctrl-C had stopped"
    assert made.loc["concat", "reason"] == "its job ended with no result"
    assert "its log is" in done.out
    assert "submitit INFO" not in done.err

    again = ablate(table, place)
    assert again.code == 0, again.err
    assert cells(place, "jobs").set_index("row").loc["concat", "run_id"] == made.loc["concat", "run_id"]
    assert results(place / "results") == results(tmp_path / "undisturbed" / "results")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Put stand-ins for a cluster's commands on the path; return a function that says what one of them does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"LOOK": 0.01, "QUEUE": 0.0}.items():
        monkeypatch.setattr(slurm, name, value)

    def does(name, script):
        path = folder / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/called\n{script}\n')
        path.chmod(0o755)

    for name in ("srun", "scancel", "sacct", "squeue"):
        does(name, "")
    does("sbatch", "echo Submitted batch job 7")
    return does


def test_what_slurm_is_told_and_a_job_that_vanishes_is_a_hole(folder, tmp_path, cluster):
    given = ("partition=gpu", "gpus_per_node=2", "mem=64GB", "setup=module load cuda", "setup=ulimit -n 65536")
    options = [word for text in given for word in ("--slurm", text)]
    cluster("sacct", "echo 'JobID|State|NodeList'; echo '7|OUT_OF_MEMORY|n1'")
    done = ablate(folder / "two.yaml", tmp_path / "runs", *SLURM, *options, "--rows", "mean")
    assert done.code == 1, done.err
    (script,) = (tmp_path / "runs" / "jobs").glob("*_submission.sh")
    told = script.read_text().splitlines()
    wanted = {"partition=gpu", "gpus-per-node=2", "mem=64GB", "time=60", "job-name=fusionbench", "signal=USR2@90"}
    assert {f"#SBATCH --{option}" for option in wanted} <= set(told)
    assert told.index("module load cuda") + 1 == told.index("ulimit -n 65536")
    (cell,) = cells(tmp_path / "runs", "two").query("row == 'mean'").to_dict("records")
    assert (cell["status"], cell["reason"]) == ("failed", "its job ended with no result (OUT_OF_MEMORY)")
    assert (tmp_path / "called").read_text().count("squeue") >= slurm.LOST


def test_a_queue_that_does_not_answer_loses_no_job(tmp_path, cluster):
    jobs = slurm.Jobs(tmp_path / "jobs", 1, {"time": 5})
    jobs._posts.append(slurm._Post(0, mock.Mock(job_id="7")))
    cluster("squeue", "exit 1")
    assert jobs._queued() == {"7"}
    cluster("squeue", "echo 8")
    assert jobs._queued() == {"8"}


def test_running_jobs_are_interrupted_and_waiting_ones_cancelled(tmp_path, cluster):
    jobs = slurm.Jobs(tmp_path / "jobs", 2, {"time": 5})
    cancelled = mock.Mock(job_id="7")
    jobs._posts.append(slurm._Post(0, cancelled))
    jobs.interrupt()
    assert [line for line in (tmp_path / "called").read_text().splitlines() if "scancel" in line] == [
        "scancel --quiet --state=PENDING 7",
        "scancel --quiet --signal=INT 7",
    ]
    cancelled.cancel.assert_called_once()


def test_mistakes_are_told_before_anything_runs(folder, tmp_path, cluster, monkeypatch):
    table = ("ablate", "--config", folder / "two.yaml", f"tracking.folder={tmp_path}/runs")
    jobs = (*table, "--launcher", "slurm")
    assert "'partion'; did you mean 'partition'?" in refused(*jobs, "--slurm", "partion=gpu")
    assert "needs --slurm time=MINUTES" in refused(*jobs, "--slurm", "partition=gpu")
    assert "not '1:00:00'" in refused(*jobs, "--slurm", "time=1:00:00")
    assert "not 'partition'" in refused(*jobs, "--slurm", "partition")
    assert "is for --launcher slurm" in refused(*table, "--slurm", "time=5")
    assert "at least 1, not 0" in refused(*jobs, "--slurm", "time=5", "--parallel", "0")
    cluster("sbatch", "echo 'sbatch: error: invalid partition specified: no' >&2; exit 1")
    assert "job: sbatch: error: invalid partition specified: no;" in ablate(*table[2:3], tmp_path / "runs", *SLURM).err
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "no SLURM on this machine" in refused(*jobs, "--slurm", "time=5")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'fusionbench-medical[slurm]'" in refused(*jobs, "--slurm", "time=5")
