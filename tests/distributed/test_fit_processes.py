"""``fusionbench fit`` on several devices: killed, gone on with, and equal to what one process makes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from layouts import CSV_MODALITIES, make_csv
from program import THIRD_PARTY, VIT, bert, command, history, new_store, refused, runs, store, write_config

pytestmark = THIRD_PARTY
PATIENCE = 240  # seconds that a process may take until it is called hung
PAIR = ("trainer.devices=2", "trainer.accelerator=cpu")
ZERO_PAIR = (*PAIR, "trainer.strategy=zero3")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Concat and, before it, its text alone; an odd number of test cases, some of which lack the text."""
    folder = tmp_path_factory.mktemp("experiment")
    path = make_csv(folder, patients=16)
    table = pd.read_csv(path)
    table.loc[(table.index % 5 == 1) & (table["split"] == "test"), "notes"] = None
    odd = table[table["split"] == "test"].index[:1]
    table.drop(index=odd).to_csv(path, index=False)
    modalities = {name: CSV_MODALITIES[name] for name in ("scan", "notes")}
    data = {"name": "csv", "path": str(path), "modalities": modalities, "size": 32, "batch_size": 4}
    tree = {
        "data": data | {"cache": str(folder / "cache"), "sampling": "shuffle"},
        "encoder": {"scan": VIT, "notes": bert(folder / "tokenizer")},
        "fusion": {"name": "concat"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "trainer": {"max_epochs": 5, "patience": 9, "progress": False, "monitor": "mAUC", "accelerator": "cpu"},
        "tracking": {"log_every": 1},
    }
    return write_config(folder / "fit.yaml", tree)


@pytest.fixture(scope="module")
def alone(experiment):
    """What one process makes of it."""
    place = new_store(experiment.parent / "alone")
    assert command("fit", "--config", experiment, f"tracking.folder={place}", FUSIONBENCH_ID_KEY="shared").code == 0
    return content(place)


def content(place):
    """Return, by run, what was scored, the points of the training, and the predictions by case."""
    found = store(place)
    values = []
    for run in runs(found):
        assert run.info.status == "FINISHED"
        predictions = pd.read_parquet(found.client.download_artifacts(run.info.run_id, "predictions.parquet"))
        points = {k: v for k, v in history(found, run.info.run_id, ("val/", "train/loss")).items()}
        values.append((run.data.tags["fusionbench.fingerprint"], points, predictions.sort_values("case")))
    return values


def killed_and_resumed(experiment, place, start, resume, test):
    """Kill a fit by SIGKILL once its last training has a checkpoint, and, gone on with, before its test; let it end."""
    arguments = ["fit", "--config", str(experiment), f"tracking.folder={place}"]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    environment |= {"FUSIONBENCH_ID_KEY": "shared", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "fusionbench", *arguments]
    _kill([*program, *start], environment, lambda: _in_its_last_training(Path(place)))
    if test is not None:
        _kill([*program, *resume, "--resume"], environment, lambda: _before_its_test(Path(place)))
    last = [*program, *(resume if test is None else test), "--resume"]
    done = subprocess.run(last, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "going on with run" in done.stderr
    return done


def _kill(command_, environment, reached):
    """Start a fit and kill it once it has got as far as wanted."""
    with subprocess.Popen(command_, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < until and not reached():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        told = process.stderr.read()
    assert process.returncode == -signal.SIGKILL, told
    assert reached(), told


def _before_its_test(place):
    """Say whether the second run, which went on, has ended its training and not its test."""
    return any(json.loads(path.read_text())["phase"] == "test" for path in (place / "work").glob("*/state.json"))


def _in_its_last_training(place):
    """Say whether the second run, after the text alone, has been through an epoch."""
    started = sorted((place / "work").glob("*"))
    return len(started) == 2 and any((place / "work").glob("*/checkpoints/last.ckpt"))


def same(found, expected, tolerance):
    """Compare two stores' contents: the same runs, points and cases, values up to a tolerance."""
    assert [run[0] for run in found] == [run[0] for run in expected]  # devices are no part of a run's identity
    for (_, points, table), (_, wanted, whole) in zip(found, expected, strict=True):
        assert set(points) == set(wanted)
        for key, values in wanted.items():
            assert [step for step, _ in points[key]] == [step for step, _ in values], key
            assert [v for _, v in points[key]] == pytest.approx([v for _, v in values], rel=tolerance, abs=tolerance)
        assert table["case"].tolist() == whole["case"].tolist()
        for column in whole.columns:
            if column.startswith("prob"):
                assert table[column].tolist() == pytest.approx(whole[column].tolist(), abs=tolerance)


@pytest.mark.parametrize(
    ("start", "resume", "test"),
    [
        (ZERO_PAIR, ZERO_PAIR, ZERO_PAIR),
        (ZERO_PAIR, (), ("trainer.strategy=zero3",)),
        ((*PAIR, "trainer.strategy=ddp"), (), None),
    ],
    ids=["zero3", "zero3 gone on with by one process", "ddp gone on with by one process"],
)
def test_a_fit_on_two_processes_that_was_killed_comes_out_as_on_one(experiment, alone, start, resume, test, tmp_path):
    place = new_store(tmp_path / "runs")
    killed_and_resumed(experiment, place, start, resume, test)
    same(content(place), alone, 2e-4)


def test_a_batch_that_cannot_be_shared_out_is_refused(experiment, tmp_path):
    told = refused(
        "fit", "--config", experiment, *PAIR, "data.batch_size=3", f"tracking.folder={new_store(tmp_path / 'runs')}"
    )
    assert "batch_size" in told
