"""``fusionbench ablate`` on real files: runs, holes, kills, sharing, and what MLflow shows of it."""

import os
import signal
import sys

import pandas as pd
import pytest
from program import THIRD_PARTY, command, new_store, refused, runs, store, write_config
from sweeping import EI, ENVIRONMENT, ablate, forked, in_child, once, results, write_base, write_table

from fusionbench.__main__ import main
from fusionbench.task import FusionTask

pytestmark = THIRD_PARTY
COLUMNS = {"eights": {}, "fours": {"data": {"batch_size": 4}}}
ROWS = {"mean": {"fusion": {"name": "mean"}}, "EI": EI}
IMPOSSIBLE = {"fusion": {"name": "mean"}, "optimizer": {"lr": -1.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tables")
    write_base(made)
    write_table(made)
    write_table(made, "square", columns=COLUMNS, rows=ROWS, metrics=["mAP", "accuracy"])
    return made


@pytest.fixture(scope="module")
def square(folder):
    """A table of two rows and two columns that nobody disturbed."""
    place = folder / "undisturbed"
    done = ablate(folder / "square.yaml", place)
    assert done.code == 0, done.err
    return place


def cells(place, name):
    return pd.read_csv(place / "results" / f"{name}.runs.csv", keep_default_na=False)


def levels(place):
    """Return the names of a store's runs by level, and the whole runs by id."""
    found = runs(store(place))
    names = {}
    for run in found:
        names.setdefault(run.data.tags["fusionbench.level"], []).append(run.info.run_name)
    return {level: sorted(own) for level, own in names.items()}, {run.info.run_id: run for run in found}


def test_a_table_becomes_runs_files_and_a_tree_in_mlflow(square):
    table = cells(square, "square")
    own = ["unimodals", "concat"]
    assert list(table.columns) == ["row", "column", "seed", "run_id", "fingerprint", "status", "reason", *own]
    assert list(zip(table["row"], table["column"], strict=True)) == [(r, c) for r in ROWS for c in COLUMNS]
    assert set(table["status"]) == {"finished"}
    names, by_id = levels(square)
    assert names["table"] == ["square"]
    assert names["row"] == ["EI · eights", "EI · fours", "mean · eights", "mean · fours"]
    assert names["seed"] == [f"{name} · seed 0" for name in names["row"]]
    assert len(names["stage1"]) == 4, "one for each modality and column"
    parent = next(run for run in by_id.values() if run.data.tags["fusionbench.level"] == "table")
    assert parent.data.tags["fusionbench.table"] == "square"
    assert "title: Two rows" in parent.data.params["table"]
    artifacts = {item.path for item in store(square).client.list_artifacts(parent.info.run_id)}
    assert {"square.yaml", "runs.csv", "square.md", "square.png"} <= artifacts
    for run in by_id.values():
        above = by_id.get(run.data.tags.get("mlflow.parentRunId"))
        wanted = {"table": None, "row": "table", "stage1": "table", "seed": "row"}[run.data.tags["fusionbench.level"]]
        assert (above.data.tags["fusionbench.level"] if above else None) == wanted
        assert run.info.status == "FINISHED"
    for row in (run for run in by_id.values() if run.data.tags["fusionbench.level"] == "row"):
        own = next(r for r in by_id.values() if r.data.tags.get("mlflow.parentRunId") == row.info.run_id)
        assert row.data.metrics["seeds"] == 1
        assert row.data.metrics["test/mAP"] == own.data.metrics["test/mAP"]
        assert "fusionbench.table" not in row.data.tags


def test_the_same_command_again_runs_nothing_and_doubles_nothing(folder, square):
    before, files = levels(square)[1], results(square / "results")
    done = ablate(folder / "square.yaml", square)
    assert done.code == 0, done.err
    assert "square: 4 finished" in done.out
    after = levels(square)[1]
    assert {k: (r.info.start_time, r.data.metrics) for k, r in after.items()} == {
        k: (r.info.start_time, r.data.metrics) for k, r in before.items()
    }
    assert results(square / "results") == files


def test_the_plan_says_what_has_ended_what_is_left_and_how_long_it_takes(folder, square):
    done = ablate(folder / "square.yaml", square, "--dry-run")
    assert done.out.count(" finished ") == 4 + 4
    assert "0 runs to do" in done.out
    longer = ablate(folder / "square.yaml", square, "--dry-run", "optimizer.lr=0.02")
    assert longer.out.count(" to do ") == 4 + 4
    assert "8 runs to do: about " in longer.out
    assert "without an estimate" not in longer.out
    fresh = command("ablate", "--config", folder / "square.yaml", "--dry-run", f"tracking.folder={folder}/nowhere")
    assert "8 runs to do: no estimate yet" in fresh.out
    assert not (folder / "nowhere").exists(), "a plan leaves nothing behind"


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
    again = ablate(folder / "two.yaml", place)
    assert again.code == 0, again.err
    assert set(cells(place, "two")["status"]) == {"finished"}


def test_a_row_that_fails_is_a_hole_with_its_reason(folder, tmp_path):
    write_table(folder, "hole", rows={"impossible": IMPOSSIBLE, "mean": {"fusion": {"name": "mean"}}})
    done = ablate(folder / "hole.yaml", tmp_path / "runs")
    assert done.code == 1
    assert "1 failed, 1 finished" in done.out
    table = cells(tmp_path / "runs", "hole").set_index("row")
    assert "'optimizer.lr' must be" in table.loc["impossible", "reason"]
    assert table.loc["impossible", "run_id"] == ""
    assert table.loc["mean", "status"] == "finished"
    status = {run.info.run_name: run.info.status for run in runs(store(tmp_path / "runs"))}
    assert status["hole"] == status["impossible"] == "FAILED"
    assert status["mean"] == "FINISHED"


def test_two_processes_at_once_give_the_same_results(folder, square, tmp_path):
    done = ablate(folder / "square.yaml", tmp_path / "runs", "--parallel", 2)
    assert done.code == 0, done.err
    assert results(tmp_path / "runs" / "results") == results(square / "results")


def test_tables_share_runs_and_each_shows_all_of_its_own(folder, square):
    rows = {"EI again": EI, "mean": {"fusion": {"name": "mean"}, "trainer": {"max_epochs": 1}}}
    write_table(folder, "other", rows=rows, baselines=["unimodal"])
    before = len(runs(store(square)))
    for _ in range(2):
        done = ablate(folder / "other.yaml", square, results=square / "others")
        assert done.code == 0, done.err
        assert len(runs(store(square))) == before + 1 + 4 + 4, "a parent, four rows and four light copies, no new run"
    table = pd.read_csv(square / "others" / "other.runs.csv", keep_default_na=False).set_index("row")
    assert table.loc[["EI again", "mean", "age alone"], "unimodals"].tolist() == ["age alone|sex alone"] * 2 + [""]
    assert set(table["concat"]) == {""}
    copies = [run for run in runs(store(square)) if "fusionbench.copy_of" in run.data.tags]
    by_id = levels(square)[1]
    for copy in copies:
        own = by_id[copy.data.tags["fusionbench.copy_of"]]
        assert copy.data.metrics == own.data.metrics
        assert "fusionbench.fingerprint" not in copy.data.tags
        assert own.data.tags["mlflow.parentRunId"] != copy.data.tags["mlflow.parentRunId"]


def test_rows_and_seeds_can_be_chosen_and_configs_overridden(folder, tmp_path):
    write_table(folder, "seeds", seeds=[0, 1], rows=ROWS)
    place = tmp_path / "runs"
    done = ablate(folder / "seeds.yaml", place, "--rows", "mean", "--seeds", "1", "data.batch_size=16")
    assert done.code == 0, done.err
    table = cells(place, "seeds")
    assert (table["status"] == "finished").sum() == 1
    assert set(table.loc[table["status"] != "finished", "status"]) == {"missing"}
    run = next(r for r in runs(store(place)) if r.data.tags["fusionbench.level"] == "seed")
    assert (run.data.params["data.batch_size"], run.data.params["seed"]) == ("16", "1")
    assert run.info.run_name == "mean · seed 1"
    more = ablate(folder / "seeds.yaml", place, "--rows", "mean", "data.batch_size=16")
    assert more.code == 0
    row = next(r for r in runs(store(place)) if r.data.tags["fusionbench.level"] == "row")
    assert row.data.metrics["seeds"] == 2
    assert row.data.metrics["test_std/mAP"] >= 0
    table = ("ablate", "--config", folder / "seeds.yaml", f"tracking.folder={place}")
    assert "no row 'meen'; did you mean 'mean'" in refused(*table, "--rows", "meen")
    assert "no seed 7" in refused(*table, "--seeds", "7")


def test_data_that_are_not_there_are_skipped_with_the_reason(folder, tmp_path):
    away = {"data": {"name": "csv", "path": "nowhere.csv"}}
    write_table(folder, "gap", columns={"here": {}, "away": away}, rows={"mean": {"fusion": {"name": "mean"}}})
    done = ablate(folder / "gap.yaml", tmp_path / "runs")
    assert done.code == 0, done.err
    assert "column 'away' is skipped: there is no file" in done.err
    table = cells(tmp_path / "runs", "gap").set_index("column")
    assert table.loc["away", "status"] == "skipped"
    assert "there is no file" in table.loc["away", "reason"]
    write_table(folder, "gone", columns={"away": away})
    where = f"tracking.folder={tmp_path}/runs"
    assert "no column whose data are there" in refused("ablate", "--config", folder / "gone.yaml", where)


def test_all_tables_of_a_folder_run_and_those_without_data_are_told(folder, tmp_path):
    tables = tmp_path / "tables"
    tree = {"title": "x", "base": str(folder / "base.yaml"), "seeds": [0], "baselines": []}
    write_config(tables / "a.yaml", {**tree, "columns": {"away": {"data": {"path": "nowhere.csv"}}}, "rows": {"r": {}}})
    write_config(tables / "b.yaml", {**tree, "rows": {"concat": {}}})
    options = ("--all", tables, f"tracking.folder={tmp_path}/runs", "--results", tmp_path / "results")
    with forked():
        done = command("ablate", *options, **ENVIRONMENT)
    assert done.code == 0, done.err
    assert "a is skipped: none of its data are there" in done.err
    assert "b: 1 finished" in done.out
    assert "holds no table" in refused("ablate", "--all", folder / "images")
    assert "needs a table" in refused("ablate")


def test_the_command_takes_no_impossible_number_of_processes(folder):
    assert "--parallel must be at least 1" in refused("ablate", "--config", folder / "square.yaml", "--parallel", "0")
    sentence = refused("ablate", "--config", folder / "square.yaml", "--parallel", "9", "trainer.accelerator=gpu")
    assert "wants a GPU for each process" in sentence


@pytest.mark.slow
def test_workers_are_new_processes_that_import_for_themselves(folder, tmp_path):
    options = (f"tracking.folder={tmp_path}/runs", "--results", tmp_path / "results")
    done = command("ablate", "--config", folder / "two.yaml", *options, **ENVIRONMENT)
    assert done.code == 0, done.err
    assert cells(tmp_path, "two")["status"].tolist() == ["finished", "finished"]
