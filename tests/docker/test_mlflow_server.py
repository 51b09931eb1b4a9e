"""The MLflow server of docker/compose.yaml, on a real PostgreSQL, with two processes that log runs at once."""

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from log_runs import POINTS, content
from mlflow import MlflowClient
from services import COMPOSE, compose_mlflow, s3_client

from fusionbench.sections import TrackingOptions
from fusionbench.tracking import Store

RUNS = 3
NAMES = ("first", "second")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Start the server, let two processes log to it at once, and return it with what each says that it logged."""
    folder = tmp_path_factory.mktemp("server")
    with compose_mlflow(folder) as (address, store), contextlib.ExitStack() as stack:
        processes = [stack.enter_context(logging_process(address, folder / "runs", name)) for name in NAMES]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        said = {name: finished(process) for name, process in zip(NAMES, processes, strict=True)}
        place = Store(TrackingOptions(uri=address, folder=str(folder / "reader"), experiment="together"))
        yield SimpleNamespace(address=address, s3=s3_client(store), said=said, place=place)


def logging_process(address: str, folder: Path, name: str) -> subprocess.Popen:
    program = [sys.executable, Path(__file__).parent / "log_runs.py", address, folder, name, str(RUNS)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(program, text=True, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}, **pipes)


def finished(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])  # after MLflow's own lines


def each_run(logged):
    """Yield (the run opened by id, process, number) for every run that was logged."""
    for name in NAMES:
        for run_id, number in logged.said[name]["runs"].items():
            yield logged.place.open(run_id), name, number


def test_both_processes_share_one_experiment_and_one_key(logged):
    first, second = (logged.said[name] for name in NAMES)
    assert first["experiment"] == second["experiment"] == logged.place.experiment
    assert [e.name for e in logged.place.client.search_experiments()].count("together") == 1
    assert first["hashed"] == second["hashed"]


def test_an_experiment_made_by_another_process_in_between_is_taken(logged):
    existing = MlflowClient.get_experiment_by_name
    unseen = [None]
    look = lambda client, name: unseen.pop() if unseen else existing(client, name)  # noqa: E731
    with mock.patch.object(MlflowClient, "get_experiment_by_name", look):
        options = TrackingOptions(uri=logged.address, folder=str(logged.place.folder), experiment="together")
        assert Store(options).experiment == logged.place.experiment
    assert not unseen


def test_no_run_is_lost(logged):
    found = logged.place.client.search_runs([logged.place.experiment])
    ids = [run_id for name in NAMES for run_id in logged.said[name]["runs"]]
    assert sorted(run.info.run_id for run in found) == sorted(ids)
    assert len(ids) == RUNS * len(NAMES)
    assert {run.info.status for run in found} == {"FINISHED"}


def test_no_point_parameter_tag_or_dataset_is_lost(logged):
    for run, name, number in each_run(logged):
        points = logged.place.client.get_metric_history(run.run_id, "train/loss")
        assert sorted((p.step, p.value) for p in points) == [(s, (number + 1) / (s + 1)) for s in range(POINTS)]
        tracked = logged.place.client.get_run(run.run_id)
        assert tracked.data.params == {"data.name": name, "seed": str(number)}
        assert tracked.data.tags["fusionbench.fusion"] == name
        assert [used.dataset.digest for used in tracked.inputs.dataset_inputs] == [name]
        assert run.name == f"{name}-{number}"


def test_runs_are_found_again_by_their_identity(logged):
    for run, name, number in each_run(logged):
        assert logged.place.find_finished(f"{name}{number}", ["predictions/cases.bin"]).run_id == run.run_id


def test_artifacts_go_through_the_server_into_the_bucket_and_back(logged):
    bucket = COMPOSE["services"]["mlflow"]["environment"]["MLFLOW_ARTIFACTS_DESTINATION"].removeprefix("s3://")
    kept = {item["Key"]: item["Size"] for item in logged.s3.list_objects_v2(Bucket=bucket)["Contents"]}
    for run, name, number in each_run(logged):
        assert run.artifact("predictions/cases.bin").read_bytes() == content(name, number)
        key = f"{logged.place.experiment}/{run.run_id}/artifacts/predictions/cases.bin"
        assert kept.pop(key) == len(content(name, number))
    assert not kept


def test_a_foreign_host_name_is_turned_away(logged):
    address = f"{logged.address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=together"
    foreign = urllib.request.Request(address, headers={"Host": "evil.example.org"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(foreign)
    with urllib.request.urlopen(address) as answer:
        assert json.load(answer)["experiment"]["name"] == "together"
