"""``fusionbench ablate`` on real files: runs, holes, kills, sharing, and what MLflow shows of it."""

import pandas as pd
import pytest
from layouts import CSV_MODALITIES, make_csv
from program import THIRD_PARTY, VIT, command, refused, runs, store, write_config
from sweeping import COLUMNS, EI, ENVIRONMENT, ROWS, ablate, cells, forked, levels, results, write_table

from fusionbench.ablate import execute
from fusionbench.errors import UserError

pytestmark = THIRD_PARTY
IMPOSSIBLE = {"fusion": {"name": "mean"}, "optimizer": {"lr": -1.0}}


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
        assert row.data.params["fusion.name"] == own.data.params["fusion.name"]
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
    assert "everything is finished" in done.out
    some = ablate(folder / "square.yaml", square, "--dry-run", "--rows", "mean", "optimizer.lr=0.02")
    assert "not asked for)" not in some.out
    assert "2 more are not asked for and not listed" in some.out
    longer = ablate(folder / "square.yaml", square, "--dry-run", "optimizer.lr=0.02")
    assert longer.out.count(" to do ") == 4 + 4
    assert "8 runs to do: about " in longer.out
    assert "without an estimate" not in longer.out
    fresh = command("ablate", "--config", folder / "square.yaml", "--dry-run", f"tracking.folder={folder}/nowhere")
    assert "8 runs to do: no estimate yet" in fresh.out
    assert not (folder / "nowhere").exists(), "a plan leaves nothing behind"


def table_without_weights(folder, model="nobody/decoder"):
    """Write a table over photographs and notes, read by one decoder that the hub does not give."""
    modalities = {name: CSV_MODALITIES[name] for name in ("photo", "notes")}
    data = {"name": "csv", "path": str(make_csv(folder)), "modalities": modalities, "size": 32}
    decoder = {"name": "llama", "weights": "hub", "model": model}
    tree = {"data": {**data, "cache": str(folder / "cache")}, "encoder": decoder, "fusion": {"name": "concat"}}
    write_config(folder / "base.yaml", tree)
    rows = {"mean": {"fusion": {"name": "mean"}}, "concat": {}}
    return write_table(folder, "far", rows=rows, seeds=[0, 1], baselines=["unimodal"])


def test_a_plan_tells_each_reason_once_and_counts_what_cannot_run(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    table = table_without_weights(tmp_path)
    done = command("ablate", "--config", table, "--dry-run", f"tracking.folder={tmp_path}/runs")
    assert done.code == 1
    assert " to do " not in done.out, "the picture alone needs the same weights"
    assert done.out.count("failed (reason 1)") == 2, "the picture alone"
    assert done.out.count("failed (reason 2)") == 6
    assert [line[:9] for line in done.out.splitlines() if line.startswith("reason ")] == ["reason 1:", "reason 2:"]
    assert done.out.count("nobody/decoder") == 2
    assert done.out.splitlines()[-1] == "nothing is left that can be run: 8 of 8 lines cannot be run"


def test_a_plan_keeps_what_needs_other_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    table = table_without_weights(tmp_path)
    own = [f"encoder.photo={{name: timm_vit, model: {VIT['model']}, weights: random}}"]
    own.append("encoder.notes={name: llama, weights: hub, model: nobody/decoder}")
    done = command("ablate", "--config", table, "--dry-run", f"tracking.folder={tmp_path}/runs", *own)
    assert done.code == 1
    assert done.out.splitlines()[-1] == "2 runs to do: no estimate yet; 6 of 8 lines cannot be run"


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
    assert table.loc["away", "reason"] == "the data are not there or have a fault, which the console names"
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
    write_config(tables / "0.yaml", {**tree, "rows": {"mean": {"fusion": {"name": "meen"}}}})
    with forked():
        done = command("ablate", *options, **ENVIRONMENT)
    assert done.code == 1, "a table with a mistake is told"
    assert "did you mean 'mean'" in done.err
    assert "b: 1 finished" in done.out, "and the others run"
    assert "did you mean 'mean'" in refused("ablate", "--config", tables / "0.yaml")
    assert "holds no table" in refused("ablate", "--all", folder / "images")
    assert "needs a table" in refused("ablate")


def test_the_command_takes_no_impossible_number_of_processes(folder):
    assert "--parallel must be at least 1" in refused("ablate", "--config", folder / "square.yaml", "--parallel", "0")
    sentence = refused("ablate", "--config", folder / "square.yaml", "--parallel", "9", "trainer.accelerator=gpu")
    assert "wants a GPU for each process" in sentence


def test_mistakes_are_told_before_any_run(folder, tmp_path):
    table = ("ablate", "--config", folder / "two.yaml", f"tracking.folder={tmp_path}/runs")
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below"):
        assert f"--results '{place}' cannot be a folder of results" in refused(*table, "--results", place)
    assert "table 'two' is given 2 times" in refused(*table, "--config", folder / "two.yaml")
    assert "use --seeds" in refused(*table, "seed=3")
    assert "run all of them by --all" in refused("ablate", "--config", folder)
    assert "no folder that exists" in refused("ablate", "--all", tmp_path / "nodir")
    assert "must be whole numbers such as 0,1, not 'abc'" in refused(*table, "--seeds", "abc")
    assert "must be names or numbers with commas between them" in refused(*table, "--seeds", "")
    assert "must be a whole number, not 'x'" in refused(*table, "--parallel", "x")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("wanted", "there", "passes"), [("auto", 2, False), ("auto", 0, True), ("cpu", 2, True)])
def test_no_gpu_is_shared_by_two_processes(monkeypatch, wanted, there, passes):
    monkeypatch.setattr(execute, "_devices", lambda: [str(number) for number in range(there)])
    if passes:
        assert len(execute.places(3, [wanted])) == 3
    else:
        assert [place.device for place in execute.places(2, [wanted])] == ["0", "1"]
        with pytest.raises(UserError, match="--parallel 3 wants a GPU for each process, but there are 2"):
            execute.places(3, [wanted])


def test_runs_on_several_gpus_share_none(monkeypatch):
    monkeypatch.setattr(execute, "_devices", lambda: ["0", "2", "5", "6", "7"])
    assert [place.device for place in execute.places(2, ["gpu"], 2)] == ["0,2", "5,6"]
    with pytest.raises(UserError, match="--parallel 3 wants 2 GPUs for each process, but there are 5"):
        execute.places(3, ["gpu"], 2)


@pytest.mark.slow
def test_workers_are_new_processes_that_import_for_themselves(folder, tmp_path):
    options = (f"tracking.folder={tmp_path}/runs", "--results", tmp_path / "results")
    done = command("ablate", "--config", folder / "two.yaml", *options, **ENVIRONMENT)
    assert done.code == 0, done.err
    assert cells(tmp_path, "two")["status"].tolist() == ["finished", "finished"]
