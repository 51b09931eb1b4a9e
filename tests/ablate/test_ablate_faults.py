"""Sweeps that are killed, workers that die, runs that are lost, and what must not be written."""

import dataclasses
import os
import signal
import sys
from multiprocessing import Pipe
from threading import Thread
from unittest import mock

import pytest
from program import THIRD_PARTY, edited, new_store, runs, store
from sweeping import EI, ENVIRONMENT, ablate, cells, forked, in_child, levels, once, results, write_table

from fusionbench import config as configs
from fusionbench.__main__ import main
from fusionbench.ablate import execute, worker
from fusionbench.ablate.sweep import in_one_place
from fusionbench.ablate.table import read
from fusionbench.ablate.tree import Tree
from fusionbench.ablate.worker import Order, Place
from fusionbench.task import FusionTask

pytestmark = THIRD_PARTY


def sweep_in_child(table, place):
    """Run a table in a process of its own, quietly."""

    def act():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the process ends
        os.environ.update(ENVIRONMENT)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        with forked():
            return main(["ablate", "--config", str(table), f"tracking.folder={place}", "--results", f"{place}/results"])

    return in_child(act)


# A run has 2 steps at batches of 8 and 4 at batches of 4, so the 4 stage-1 runs have 12 steps and the rest 12.
@pytest.mark.parametrize(
    ("call", "number"),
    [
        pytest.param(20, signal.SIGKILL, id="killed after stage 1"),
        pytest.param(3, signal.SIGKILL, id="killed in stage 1", marks=pytest.mark.slow),
        pytest.param(16, signal.SIGINT, id="Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_a_sweep_killed_anywhere_ends_as_if_nothing_had_happened(folder, square, tmp_path, call, number):
    place = new_store(tmp_path / "runs")

    def stop():
        os.kill(os.getppid(), number)
        signal.pause()

    with once(tmp_path / "stopped", FusionTask, "training_step", call, stop):
        code = sweep_in_child(folder / "square.yaml", place)
    assert code == (130 if number == signal.SIGINT else -number)
    assert (tmp_path / "stopped").exists()
    states = {run.data.tags["fusionbench.level"]: run.info.status for run in runs(store(place))}
    assert states["table"] == ("KILLED" if number == signal.SIGINT else "RUNNING")
    if number == signal.SIGINT:
        assert "RUNNING" not in [r.info.status for r in runs(store(place))]
    begun = {r.info.run_id for r in runs(store(place))}
    done = ablate(folder / "square.yaml", place)
    assert done.code == 0, done.err
    assert begun <= set(levels(place)[1]), "what was begun goes on"
    assert {k: len(v) for k, v in levels(place)[0].items()} == {"table": 1, "row": 4, "stage1": 4, "seed": 4}
    assert results(place / "results") == results(square / "results")


def test_a_worker_that_is_killed_is_a_hole_and_the_others_go_on(folder, tmp_path):
    place = tmp_path / "runs"
    die = once(tmp_path / "died", FusionTask, "training_step", 2, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with die:
        done = ablate(folder / "two.yaml", place)
    assert done.code == 1
    table = cells(place, "two").set_index("row")
    assert table["status"].to_dict() == {"mean": "failed", "concat": "finished"}
    assert table.loc["mean", "reason"].endswith("process ended by signal 9")
    assert "signal 9" in done.out
    dead = store(place).client.get_run(table.loc["mean", "run_id"])
    assert (dead.info.status, dead.data.tags["fusionbench.row"]) == ("FAILED", "mean")
    again = ablate(folder / "two.yaml", place)
    assert again.code == 0, again.err
    assert set(cells(place, "two")["status"]) == {"finished"}


def test_no_id_path_or_message_reaches_what_is_written_or_tracked(folder, tmp_path):
    def mark(row):
        return row | ({"group_id": "SECRET-eye"} if row["case_id"] in ("c000", "c031") else {})

    leaky = {"data": {"path": edited(folder, "leaky.csv", mark).removeprefix("data.path=")}}
    away = {"data": {"path": str(tmp_path / "nowhere.csv")}}
    columns = {"leaky": leaky, "away": away, "here": {}}
    write_table(folder, "private", columns=columns, rows={"mean": {"fusion": {"name": "mean"}}})

    def fail(task, batch, batch_idx):
        raise RuntimeError("case SECRET-eye")

    place = tmp_path / "runs"
    with mock.patch.object(FusionTask, "training_step", fail):
        done = ablate(folder / "private.yaml", place)
    assert done.code == 1
    assert done.out.count("SECRET-eye") == 2, "the console names the patient in two splits, and the error"
    reasons = cells(place, "private").set_index("column")["reason"].to_dict()
    data = "the data are not there or have a fault, which the console names"
    assert reasons == {"leaky": data, "away": data, "here": "RuntimeError"}
    written = [path for part in ("results", "artifacts") for path in (place / part).rglob("*") if path.is_file()]
    assert {"private.md", "runs.csv", "private.runs.csv", "private.yaml"} <= {path.name for path in written}
    assert not [path for path in written if b"SECRET" in path.read_bytes()]
    assert not [run for run in runs(store(place)) if "SECRET" in str(run.to_dictionary())]
    told = [path for path in written if path.suffix in (".md", ".csv")]
    assert not [path for path in told if b"nowhere" in path.read_bytes()]


def test_a_password_is_not_tracked_and_metric_and_margin_are_tags(folder, tmp_path):
    place = tmp_path / "runs"
    path = write_table(folder, "secret", metric="mAUC", margin=0.05, rows={"mean": {"fusion": {"name": "mean"}}})
    uri = f"sqlite:///{new_store(place)}/mlflow.db"
    path.write_text(path.read_text("utf-8") + "# https://me:pass@word@host/path\n", "utf-8")
    table = in_one_place(read(path, [f"tracking.uri={uri}", f"tracking.folder={place}"]))
    tree = Tree(store(place), table, table.config("mean", "csv", 0))
    tree.keep([], "")
    parent = store(place).client.get_run(tree.parent)
    assert (parent.data.tags["fusionbench.metric"], parent.data.tags["fusionbench.margin"]) == ("mAUC", "0.05")
    assert parent.data.params["table"].endswith("# https://host/path\n")
    (kept,) = place.rglob("secret.yaml")
    assert kept.read_text("utf-8") == parent.data.params["table"]


def test_a_run_whose_predictions_or_model_are_gone_is_run_again(folder, tmp_path):
    place = tmp_path / "runs"
    write_table(folder, "lost", rows={"EI": EI, "mean": {"fusion": {"name": "mean"}}})
    assert ablate(folder / "lost.yaml", place).code == 0
    before = results(place / "results")
    by_name = {run.info.run_name: run.info.run_id for run in runs(store(place))}
    for name, lost in (("mean · seed 0", "predictions.parquet"), ("age-mor-csv-s0", "model.safetensors")):
        for path in place.rglob(lost):
            if by_name[name] in path.parts:
                path.unlink()
    plan = ablate(folder / "lost.yaml", place, "--dry-run")
    assert "3 runs to do" in plan.out, "EI's identity is open until its stage 1 is there again"
    assert ablate(folder / "lost.yaml", place).code == 0
    after = [run.info.run_id for run in runs(store(place)) if run.info.run_id not in by_name.values()]
    assert len(after) == 2
    assert results(place / "results") == before


def test_a_worker_that_died_while_idle_is_replaced(folder, tmp_path):
    config = configs.load(folder / "base.yaml", [f"tracking.folder={new_store(tmp_path / 'runs')}", "fusion.name=mean"])
    config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, progress=False))
    workers, reports = execute.Workers([Place(threads=1)]), []

    def go():
        workers.run([Order(config, {})], lambda number: None, lambda text: None, lambda _, r: reports.append(r))

    try:
        with forked(), mock.patch.dict(os.environ, ENVIRONMENT):
            go()
            os.kill(workers._workers[0].process.pid, signal.SIGKILL)
            workers._workers[0].process.join()
            go()
    finally:
        workers.close()
    assert [report.kind for report in reports] == ["finished", "finished"], reports
    assert reports[0].run_id == reports[1].run_id


def test_forks_of_a_worker_send_nothing_and_its_threads_whole_reports(folder):
    here, there = Pipe()
    lines = worker._Lines(worker._Pipe(there))
    assert in_child(lambda: lines.write("from a fork\n") and 0) == 0
    text = "x" * 5000
    threads = [Thread(target=lambda: [lines.write(f"{text}\n") for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    got = [here.recv().text for _ in range(80)]
    for thread in threads:
        thread.join()
    assert set(got) == {text}
    assert not here.poll()
