"""Runs in MLflow: what is written, when, and only once; ids that nobody can read; runs that are found again."""

import hashlib
import hmac
import json
import stat

import pytest
import yaml
from program import THIRD_PARTY, new_store, store

from fusionbench.config import flatten
from fusionbench.errors import UserError
from fusionbench.files import write_json
from fusionbench.logger import RunLogger
from fusionbench.sections import TrackingOptions
from fusionbench.tracking import Store, store_uri

pytestmark = THIRD_PARTY


@pytest.fixture
def place(tmp_path):
    return store(new_store(tmp_path / "runs"))


@pytest.fixture
def run(place):
    return place.start("first", "f" * 24, {"fusionbench.fusion": "concat"})


def points(run, key):
    return [(p.step, p.value) for p in run.store.client.get_metric_history(run.run_id, key)]


def test_points_are_written_when_flushed_and_only_then(run):
    run.log_metrics({"train/loss": 1.0}, 1)
    run.log_metrics({"train/loss": 0.5}, 2)
    assert run.metrics() == {}
    run.flush()
    assert points(run, "train/loss") == [(1, 1.0), (2, 0.5)]
    run.flush()
    assert points(run, "train/loss") == [(1, 1.0), (2, 0.5)]


def test_more_points_than_the_store_takes_at_once(run):
    for step in range(1203):
        run.log_metrics({"train/loss": float(step)}, step)
    run.flush()
    assert len(points(run, "train/loss")) == 1203


def test_what_is_not_a_number_is_left_out(run):
    run.log_metrics({"val/AP/rare": float("nan"), "val/mAP": 0.5, "val/loss": float("inf")})
    run.flush()
    assert run.metrics() == {"val/mAP": 0.5}


def test_a_resumed_run_writes_no_point_twice(place, run):
    run.log_metrics({"val/mAP": 0.25}, 3)
    run.log_metrics({"val/mAP": 0.5}, 6)
    run.flush()
    again = store(place.folder).find_unfinished("f" * 24)
    again.resume()
    for step, value in ((6, 0.5), (9, 0.75)):
        again.log_metrics({"val/mAP": value}, step)
        again.log_metrics({"val/mAP": value}, step)
    again.flush()
    assert sorted(points(run, "val/mAP")) == [(3, 0.25), (6, 0.5), (9, 0.75)]


def test_a_class_with_an_odd_name_can_be_tracked(run):
    names = ["melanoma (in situ)", "PCV", "AMD: wet/late", "naïve", "50 % or more", "a|b"]
    run.log_metrics({f"test/AP/{name}": number / 8 for number, name in enumerate(names)})
    run.flush()
    assert sorted(run.metrics().values()) == [number / 8 for number in range(6)]


def test_a_long_parameter_is_tracked_and_whole_in_the_artifact(run, tmp_path):
    words = [f"column number {number}" for number in range(400)]
    tree = {"data": {"columns": words, "size": 32}, "seed": 0, "init": {}}
    run.log_params(flatten(tree))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    run.log_artifact(path)
    kept = run.store.client.get_run(run.run_id).data.params
    assert kept["data.size"] == "32"
    assert len(kept["data.columns"]) == 6000
    assert ", ".join(words).startswith(kept["data.columns"])
    assert yaml.safe_load(run.artifact("config.yaml").read_text()) == tree
    run.log_params(flatten(tree) | {"more": 1})
    assert run.store.client.get_run(run.run_id).data.params["more"] == "1"


def test_a_tree_is_flattened_by_dots():
    tree = {"a": {"b": {"c": 1}, "d": [1, "x"]}, "f": {}, "g": "text", "h": None}
    assert flatten(tree) == {"a.b.c": 1, "a.d": "1, x", "f": {}, "g": "text", "h": None}


def test_ids_are_hashed_with_a_key_that_stays_in_the_folder(place, monkeypatch):
    monkeypatch.delenv("FUSIONBENCH_ID_KEY", raising=False)
    shown = place.anonymous("0042")
    key = place.folder / "id.key"
    assert shown == hmac.new(key.read_text().encode(), b"0042", hashlib.sha256).hexdigest()[:16]
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert shown == store(place.folder).anonymous("0042")
    assert shown != place.anonymous("0043")
    assert shown != hashlib.sha256(b"0042").hexdigest()[:16]
    assert sorted(path.name for path in place.folder.iterdir()) == ["id.key", "mlflow.db"]


def test_another_store_has_another_key_unless_a_team_shares_one(place, tmp_path, monkeypatch):
    monkeypatch.delenv("FUSIONBENCH_ID_KEY", raising=False)
    other = store(new_store(tmp_path / "other"))
    assert place.anonymous("0042") != other.anonymous("0042")
    monkeypatch.setenv("FUSIONBENCH_ID_KEY", "shared")
    assert place.anonymous("0042") == other.anonymous("0042")


def test_a_run_is_found_by_id_by_its_beginning_and_by_name(place, run):
    for name in (run.run_id, run.run_id[:6], "first"):
        assert place.open(name).run_id == run.run_id
    with pytest.raises(UserError, match=r"there is no run 'frist' in .*; did you mean 'first'"):
        place.open("frist")


def test_only_a_run_that_ended_well_is_used_again(place, run):
    fingerprint = "f" * 24
    assert place.find_finished(fingerprint) is None
    assert place.find_unfinished(fingerprint).run_id == run.run_id
    run.finish("FAILED")
    assert place.find_finished(fingerprint) is None
    assert place.find_unfinished(fingerprint).run_id == run.run_id
    run.finish("FINISHED")
    assert place.find_finished(fingerprint).run_id == run.run_id
    assert place.find_unfinished(fingerprint) is None
    assert place.find_finished("e" * 24) is None


def test_finishing_writes_what_is_still_buffered(run):
    run.log_metrics({"test/mAP": 0.5})
    run.finish("FINISHED")
    assert run.metrics() == {"test/mAP": 0.5}
    assert run.store.client.get_run(run.run_id).info.status == "FINISHED"


def test_the_phase_is_kept_beside_the_fingerprint(place, run):
    assert run.phase == "fit"
    run.set_phase("test")
    assert store(place.folder).open("first").phase == "test"
    assert place.find_unfinished("f" * 24).run_id == run.run_id


def test_two_processes_cannot_work_on_one_run(place, run):
    run.lock()
    other = place.find_unfinished("f" * 24)
    with pytest.raises(UserError, match="another process"):
        other.lock()
    run.finish("FAILED")
    other.lock()
    other.finish("FAILED")


def test_an_artifact_that_is_not_there(run):
    with pytest.raises(UserError, match="has no artifact 'model'"):
        run.artifact("model")


def test_lightning_writes_through_the_same_buffer(run):
    logger = RunLogger(run)
    logger.log_metrics({"val/mAP": 0.5, "epoch": 0}, 4)
    run.flush()
    assert run.metrics() == {"val/mAP": 0.5}
    assert points(run, "val/mAP") == [(4, 0.5)]
    assert logger.version == run.run_id


def test_where_runs_are_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(TrackingOptions(folder=str(tmp_path))) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert store_uri(TrackingOptions(folder=str(tmp_path))) == "http://127.0.0.1:1"
    assert store_uri(TrackingOptions(uri="sqlite:///x.db")) == "sqlite:///x.db"


def test_a_store_that_cannot_be_used_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"the tracking store 'file:[^\n]*' cannot be used: [^\n]+\Z"):
        Store(TrackingOptions(folder=str(tmp_path / "runs"), uri=f"file:{tmp_path}/mlruns"))


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_json(path, {"phase": "fit"})
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"phase": "test"})
    assert json.loads(path.read_text()) == {"phase": "fit"}
    assert list(tmp_path.iterdir()) == [path]


def test_json_keeps_the_order_of_keys(tmp_path):
    write_json(tmp_path / "x.json", {"photo": 1, "labs": 2})
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["photo", "labs"]
