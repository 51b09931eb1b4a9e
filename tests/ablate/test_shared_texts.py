"""Texts alone in a sweep: planned, listed and counted once, shared with baselines and stage 1, the same in parallel."""

import pytest
from layouts import CSV_MODALITIES, make_csv
from program import TABLE, THIRD_PARTY, bert, new_store, runs, store, write_config
from sweeping import EI, ablate, cells, levels, results, write_table

pytestmark = THIRD_PARTY
ROWS = {"mean": {"fusion": {"name": "mean"}}, "concat": {}}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with ``base.yaml``, concat over notes and a table, and two tables: without and with baselines."""
    folder = tmp_path_factory.mktemp("texts")
    path = make_csv(folder, patients=16)
    modalities = {name: CSV_MODALITIES[name] for name in ("notes", "labs")}
    tree = {
        "data": {"name": "csv", "path": str(path), "modalities": modalities},
        "encoder": {"notes": bert(folder / "tokenizer"), "labs": TABLE},
        "fusion": {"name": "concat"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "trainer": {"max_epochs": 1, "patience": 0},
    }
    write_config(folder / "base.yaml", tree)
    write_table(folder, "bare", rows=ROWS)
    write_table(folder, "baselines", rows=ROWS | {"EI": EI}, baselines=["unimodal"])
    return folder


@pytest.fixture(scope="module")
def alone(texts):
    """The store after the table without baselines, one process."""
    place = texts / "runs"
    done = ablate(texts / "bare.yaml", place)
    assert done.code == 0, done.err
    return place


def trained(place):
    return sorted(
        (run.data.tags["fusionbench.fusion"], run.data.tags["fusionbench.modalities"])
        for run in runs(store(place))
        if run.data.tags["fusionbench.level"] in ("seed", "stage1") and "fusionbench.copy_of" not in run.data.tags
    )


def test_the_plan_lists_and_counts_a_text_alone_once(texts, tmp_path):
    done = ablate(texts / "bare.yaml", new_store(tmp_path / "runs"), "--dry-run")
    assert done.out.count("text only: notes") == 1
    assert "3 runs to do: no estimate yet" in done.out
    done = ablate(texts / "baselines.yaml", tmp_path / "runs", "--dry-run")
    assert "text only" not in done.out
    assert done.out.count("notes alone") == 1
    assert "5 runs to do" in done.out
    one = ablate(texts / "bare.yaml", tmp_path / "runs", "--dry-run", "--rows", "mean")
    assert "2 runs to do" in one.out


def test_a_text_alone_is_run_once_for_all_rows(texts, alone):
    both = "notes, labs"
    assert trained(alone) == [("concat", both), ("mean", both), ("unimodal", "notes")]
    assert len(levels(alone)[0]["stage1"]) == 1
    assert list(cells(alone, "bare")["row"]) == list(ROWS)
    for run in runs(store(alone)):
        if run.data.tags["fusionbench.level"] == "seed":
            assert "test/text_only/mAP" in run.data.metrics
    again = ablate(texts / "bare.yaml", alone, "--dry-run")
    assert "everything is finished" in again.out


def test_two_processes_train_it_once_and_write_the_same(texts, alone, tmp_path):
    done = ablate(texts / "bare.yaml", tmp_path / "runs", "--parallel", 2)
    assert done.code == 0, done.err
    assert trained(tmp_path / "runs") == trained(alone)
    assert results(tmp_path / "runs" / "results") == results(alone / "results")


def test_the_text_alone_is_the_baseline_and_the_stage_1_run(texts, alone):
    done = ablate(texts / "baselines.yaml", alone)
    assert done.code == 0, done.err
    assert [kind for kind in trained(alone) if kind[0] == "unimodal"] == [("unimodal", "labs"), ("unimodal", "notes")]
    table = cells(alone, "baselines").set_index("row")
    before = [run for run in runs(store(alone)) if run.data.tags["fusionbench.level"] == "stage1"]
    text = next(run for run in before if run.data.tags["fusionbench.modalities"] == "notes")
    assert table.loc["notes alone", "run_id"] == text.info.run_id
    fused = store(alone).client.get_run(table.loc["EI", "run_id"])
    assert fused.data.metrics["test/text_only/mAP"] == text.data.metrics["test/mAP"]


def test_a_text_alone_that_fails_is_said_of_the_rows_that_want_it(texts, tmp_path, monkeypatch):
    from fusionbench.fusion.unimodal import Unimodal

    def broken(*_):
        raise RuntimeError("no reader")

    monkeypatch.setattr(Unimodal, "forward", broken)
    done = ablate(texts / "bare.yaml", tmp_path / "runs", "--rows", "mean")
    assert done.code == 1
    reason = cells(tmp_path / "runs", "bare").set_index("row").loc["mean", "reason"]
    assert reason == "the text alone of 'notes' failed: RuntimeError"
