"""Runs that are cut off and go on, stage-1 runs that are used again, and runs that must come out alike."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pandas as pd
import pytest
import timm
import torch
from layouts import CSV_MODALITIES, make_csv
from program import THIRD_PARTY, VIT, bert, command, history, new_store, runs, store, write_config
from safetensors.torch import save_file

pytestmark = THIRD_PARTY
SIGKILL, SIGINT = 9, 2
# Imports everything once and then makes each command a process of its own, which ends itself at a chosen moment: by a
# signal at the n-th call of a function.
HOST = """
import importlib, json, os, signal, sys
import torch, mlflow, fusionbench.run, fusionbench.report.run_report
from fusionbench.__main__ import main

def die(number, module, name, call):
    owner = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), []
    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return real(*arguments, **options)
    setattr(owner, last, counted)

for line in sys.stdin:
    moment, arguments = json.loads(line)
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if moment:
            die(*moment)
        os.dup2(2, 1)
        os._exit(main(arguments))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Host:
    """A process that runs commands, each in a process of its own."""

    process: subprocess.Popen

    def fit(self, config, folder, *options, moment=None):
        """Fit into a folder, to the end or until a moment; return the exit status, negative for a signal."""
        arguments = ["fit", "--config", str(config), f"tracking.folder={folder}", *options]
        self.process.stdin.write(json.dumps([moment, arguments]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def write_experiment(folder):
    """Write a csv and ``fit.yaml``: EI over two modalities, both stages, three epochs of three steps each."""
    path = make_csv(folder, patients=16)
    modalities = {name: CSV_MODALITIES[name] for name in ("scan", "notes")}
    data = {"name": "csv", "path": str(path), "modalities": modalities, "size": 32, "batch_size": 6}
    tree = {
        "data": data | {"cache": str(folder / "cache")},
        "encoder": {"scan": VIT, "notes": bert(folder / "tokenizer")},
        "fusion": {"name": "early_intervention", "hidden": 8},
        "init": {"stage1": "unimodal"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "trainer": {"max_epochs": 3, "patience": 5, "progress": False},
        "tracking": {"log_every": 1},
    }
    return write_config(folder / "fit.yaml", tree)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def host():
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    environment |= {"FUSIONBENCH_ID_KEY": "the same for all", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", HOST]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(program, text=True, env=environment, **pipes) as process:
        yield Host(process)
        process.stdin.close()


@pytest.fixture(scope="module")
def uninterrupted(host, experiment):
    """What the runs of a fit that nobody disturbed hold."""
    place = new_store(experiment.parent / "uninterrupted")
    assert host.fit(experiment, place) == 0
    return content(place)


def content(place):
    """Return all that the runs of a store came to, costs and times left out, stage 1 first."""
    found = store(place)
    values = []
    for run in runs(found):
        assert run.info.status == "FINISHED"
        kept = {k: v for k, v in run.data.metrics.items() if k.startswith(("test", "train_final", "parameters"))}
        predictions = pd.read_parquet(found.client.download_artifacts(run.info.run_id, "predictions.parquet"))
        points = history(found, run.info.run_id, ("val/", "train/", "epoch"))
        values.append((run.data.tags["fusionbench.fingerprint"], kept, points, predictions.to_dict("list")))
    return values


def identifiers(place):
    return [run.info.run_id for run in runs(store(place))]


STEP = ("fusionbench.task", "FusionTask.training_step")
SAVE_LAST = ("lightning.pytorch.callbacks", "ModelCheckpoint._save_none_monitor_checkpoint")
# When it is cut off, and how many training steps are then left: an epoch has 3, a run 9, a fit 27.
MOMENTS = {
    "second epoch of the first stage 1": ((SIGKILL, *STEP, 5), 24),
    "second epoch of stage 2": ((SIGKILL, *STEP, 23), 6),
    "between fit and test": ((SIGKILL, "fusionbench.training", "load_best", 3), 0),
}
MORE = {
    "first step of all": ((SIGKILL, *STEP, 1), 27),
    "last step of the second stage 1": ((SIGKILL, *STEP, 18), 12),
    "between best and last checkpoint": ((SIGKILL, *SAVE_LAST, 8), 6),
    "before an epoch's points are written": ((SIGKILL, "fusionbench.tracking", "TrackedRun.flush", 2), 24),
    "before the predictions are written": ((SIGKILL, "fusionbench.inference", "write_table", 3), 0),
    "before the run is closed": ((SIGKILL, "fusionbench.tracking", "TrackedRun.finish", 3), 0),
    "after the store closed it": ((SIGKILL, "fusionbench.tracking", "TrackedRun.set_phase", 9), 0),
    "Ctrl-C in stage 2": ((SIGINT, *STEP, 23), 6),
}
ALL = [pytest.param(*values, id=name) for name, values in MOMENTS.items()]
ALL += [pytest.param(*values, id=name, marks=pytest.mark.slow) for name, values in MORE.items()]


@pytest.mark.parametrize(("moment", "left"), ALL)
def test_a_run_that_was_cut_off_goes_on_and_ends_as_if_nothing_had_happened(
    host, experiment, uninterrupted, tmp_path, moment, left
):
    place = new_store(tmp_path / "runs")
    assert host.fit(experiment, place, moment=moment) == (130 if moment[0] == SIGINT else -SIGKILL)
    before = identifiers(place)
    assert before
    assert runs(store(place))[-1].info.status in ("KILLED", "RUNNING", "FINISHED")
    one_step_too_many = (SIGKILL, *STEP, left + 1)
    assert host.fit(experiment, place, "--resume", moment=one_step_too_many) == 0
    assert identifiers(place)[: len(before)] == before
    assert content(place) == uninterrupted


@pytest.mark.slow
def test_a_run_goes_on_with_its_adapters_where_only_memory_is_saved(host, experiment, uninterrupted, tmp_path):
    place = new_store(tmp_path / "runs")
    moment, left = MOMENTS["second epoch of stage 2"]
    assert host.fit(experiment, place, moment=moment) == -SIGKILL
    saving, one_step_too_many = "encoder.scan.checkpointing=true", (SIGKILL, *STEP, left + 1)
    assert host.fit(experiment, place, "--resume", saving, moment=one_step_too_many) == 0
    assert content(place) == uninterrupted


def test_an_uninterrupted_run_has_each_point_once(uninterrupted):
    assert len(uninterrupted) == 3
    for _, kept, points, _ in uninterrupted:
        assert kept["test/mAP"] >= 0
        assert [step for step, _ in points["train/loss"]] == list(range(9))
        assert len({step for step, _ in points["val/mAP"]}) == len(points["val/mAP"]) == 3


def test_the_last_checkpoint_is_of_the_last_epoch_improvement_or_not(uninterrupted, experiment):
    checkpoints = (experiment.parent / "uninterrupted" / "work").glob("*/checkpoints")
    for folder in checkpoints:
        assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
        assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 2
    best = [max(value for _, value in points["val/mAP"]) for _, _, points, _ in uninterrupted]
    last = [points["val/mAP"][-1][1] for _, _, points, _ in uninterrupted]
    first = [points["val/mAP"][0][1] for _, _, points, _ in uninterrupted]
    assert any(b == f or b > e for b, f, e in zip(best, first, last, strict=True)), "each last epoch was an improvement"


def test_the_number_of_workers_changes_no_number(host, experiment, uninterrupted, tmp_path):
    place = new_store(tmp_path / "runs")
    assert host.fit(experiment, place, "data.num_workers=2", "trainer.progress=true") == 0
    assert content(place) == uninterrupted


def test_a_second_run_trains_stage_one_no_more(tmp_path, experiment):
    place = new_store(tmp_path / "runs")
    short = ["trainer.max_epochs=1", f"tracking.folder={place}"]
    assert command("fit", "--config", experiment, *short).code == 0
    first = identifiers(place)
    again = command("fit", "--config", experiment, *short, "trainer.progress=true", "fusion.lambda_aux=0.5")
    assert again.code == 0, again.err
    assert f"stage 1, scan: reusing run {first[0]}" in again.err
    assert f"stage 1, notes: reusing run {first[1]}" in again.err
    assert identifiers(place)[:3] == first
    assert len(identifiers(place)) == 4
    given = [f"init.runs.scan={first[0]}", f"init.runs.notes={first[1]}", "init.stage1=none", "fusion.detach=false"]
    by_hand = command("fit", "--config", experiment, *short, *given)
    assert by_hand.code == 0, by_hand.err
    assert len(identifiers(place)) == 5
    finished = command("fit", "--config", experiment, *short, "--resume")
    assert f"run {first[2]} has ended already" in finished.err
    assert len(identifiers(place)) == 5
    swapped = [f"init.runs={{scan: {first[1]}, notes: {first[0]}}}", *given[2:]]
    message = command("fit", "--config", experiment, *short, *swapped).err
    assert "is no unimodal run of 'scan'" in message


@pytest.fixture(scope="module")
def fingerprint_of(experiment):
    from fusionbench import build, config, stage_one
    from fusionbench.fingerprint import fingerprint

    def compute(*overrides):
        own = stage_one.stage_one_config(config.load(experiment, overrides), "scan")
        return fingerprint(own, build.data(own), {})

    return compute


@pytest.mark.parametrize(
    "override",
    [
        *("data.num_workers=2", "trainer.progress=true", "trainer.accelerator=cpu", "tracking.folder=elsewhere"),
        *("tracking.run_name=other", "fusion.lambda_aux=0.9", "fusion.name=mean", "encoder.notes.pool=mean"),
        *("adapt.bypass=true", "data.on_unreadable=stop", "optimizer.eps=1e-8", "encoder.scan.checkpointing=true"),
    ],
)
def test_what_a_stage_one_run_does_not_depend_on(fingerprint_of, override):
    assert fingerprint_of(override) == fingerprint_of()


def test_it_does_not_depend_on_where_the_data_lie(fingerprint_of, tmp_path):
    make_csv(tmp_path / "moved", patients=16)
    assert fingerprint_of(f"data.path={tmp_path}/moved/cases.csv", f"data.cache={tmp_path}/cache") == fingerprint_of()


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "optimizer.lr=0.02", "trainer.max_epochs=4", "trainer.precision=bf16-mixed", "data.batch_size=4"),
        *("adapt.name=lora", "data.size=48", "data.transforms.rotate=0.0", "data.modalities.scan.instances=3"),
        *("init.overrides.scheduler.gamma=0.5", "task.label_smoothing=0.1"),
    ],
)
def test_what_a_stage_one_run_depends_on(fingerprint_of, override):
    assert fingerprint_of(override) != fingerprint_of()


def test_the_order_of_modalities_is_part_of_a_run(experiment):
    from fusionbench import build, config
    from fusionbench.fingerprint import fingerprint

    loaded = config.load(experiment)
    tree = loaded.to_dict()
    tree["data"]["modalities"] = dict(reversed(tree["data"]["modalities"].items()))
    turned = config.from_dict(tree)
    first, second = (fingerprint(c, build.data(c), {}) for c in (loaded, turned))
    assert first != second


def test_weights_count_by_their_content_and_not_by_their_path(fingerprint_of, tmp_path):
    def weights(name, seed):
        torch.manual_seed(seed)
        path = tmp_path / name
        save_file(timm.create_model("test_vit", num_classes=0, global_pool="token").state_dict(), path)
        return f"encoder.scan.weights={path}"

    first, copy, other = weights("a.safetensors", 0), weights("b.safetensors", 0), weights("c.safetensors", 1)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    moved = f"encoder.scan.weights={tmp_path}/moved/a.safetensors"
    assert fingerprint_of(first) == fingerprint_of(moved) == fingerprint_of(copy) != fingerprint_of(other)
