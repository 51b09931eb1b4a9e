"""docker/: what is pinned, what is open, where secrets come from, and that `make mlflow-server` starts the same."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from services import COMPOSE, ROOT, VARIABLE, resolved

SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
PINNED = re.compile(r"[\w./-]+:\d+\.\d+[\w.-]*")
TEXT = (ROOT / "docker" / "compose.yaml").read_text("utf-8")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_watched_started_again_and_open_to_this_machine_alone(name):
    service = SERVICES[name]
    assert PINNED.fullmatch(service["image"])
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_only_the_server_can_be_reached_from_outside():
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert [name for name, service in SERVICES.items() if service["networks"] != ["inside"]] == ["mlflow"]
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["mlflow"]


def test_the_server_starts_when_what_it_needs_is_healthy():
    needed = SERVICES["mlflow"]["depends_on"]
    assert needed == {name: {"condition": "service_healthy"} for name in SERVICES if name != "mlflow"}


def test_what_is_kept_lies_in_named_volumes():
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert used == set(COMPOSE["volumes"])


def test_every_secret_comes_from_the_environment_and_stands_empty_in_the_example():
    example = dict(re.findall(r"^#?(\w+)=(.*)$", (ROOT / "docker" / ".env.example").read_text("utf-8"), re.MULTILINE))
    required = {name for name, sign, _ in VARIABLE.findall(TEXT) if sign == "?"}
    optional = {name: default for name, sign, default in VARIABLE.findall(TEXT) if sign == "-"}
    assert example == dict.fromkeys(required, "") | optional
    secret = re.compile(r"PASSWORD|ACCESS_KEY")
    values = [str(v) for service in SERVICES.values() for k, v in service["environment"].items() if secret.search(k)]
    assert all(VARIABLE.fullmatch(value) for value in values)
    for name in required:
        with pytest.raises(KeyError, match=name):
            resolved(f"${{{name}:?}}", {})


def test_the_store_makes_the_bucket_that_the_server_writes_to():
    bucket = SERVICES["mlflow"]["environment"]["MLFLOW_ARTIFACTS_DESTINATION"].removeprefix("s3://")
    assert f"-bucket={bucket}" in SERVICES["artifacts"]["command"]
    assert SERVICES["artifacts"]["environment"]["AWS_ACCESS_KEY_ID"] == "${S3_ACCESS_KEY:?see docker/.env.example}"


def test_images_are_pinned_and_run_as_nobody_in_particular():
    bases = re.findall(r"^FROM (?!python)(\S+)|^ARG BASE=(\S+)", DOCKERFILE, re.MULTILINE)
    images = [first or second for first, second in bases if first != "${BASE}"]
    assert len(images) == 3
    assert all(PINNED.fullmatch(image) for image in images)
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert users == ["10001", "${UID}"]
    assert "ARG UID=1000\n" in DOCKERFILE


def test_what_the_dockerfile_takes_from_the_tree_is_there_and_sent_to_the_builder():
    sources = set(re.findall(r"source=([\w.]+),target=[\w.]+ ", DOCKERFILE))
    for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.MULTILINE):
        sources |= set(line.split()[:-1])
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignore
    assert {f"!{source}" for source in sources} == {line for line in ignore if line.startswith("!")}
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_has_the_version_of_the_package_and_extras_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert SERVICES["mlflow"]["image"] == f"fusionbench-server:{project['version']}"
    assert set(re.findall(r"--extra (\w+)", DOCKERFILE)) <= set(project["optional-dependencies"])
    server = re.search(r"constraints\.txt mlflow (.*)", DOCKERFILE)[1].split()
    assert server == [re.match(r"\w+", need)[0] for need in project["optional-dependencies"]["server"]]


def made(folder: Path, **environment: str) -> dict[str, str]:
    """Run ``make mlflow-server`` with an ``mlflow`` that only says how it was called."""
    fake = folder / "mlflow"
    fake.write_text('#!/bin/sh\necho "ARGUMENTS=$*"\nenv\n', "utf-8")
    fake.chmod(0o755)
    (folder / "ready").touch()
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    command = ["make", "--silent", "mlflow-server", f"BIN={folder}", f"READY={folder / 'ready'}"]
    variables = {name: os.environ[name] for name in ("PATH", "HOME")}
    done = subprocess.run(command, cwd=folder, env={**variables, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def test_make_mlflow_server_starts_what_compose_starts(tmp_path):
    told = made(tmp_path, PORT="5055")
    command = " ".join(SERVICES["mlflow"]["command"]).replace("0.0.0.0", "127.0.0.1").replace("5000", "5055")
    assert told["ARGUMENTS"] == command
    assert told["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path}/runs/server/mlflow.db"
    assert told["MLFLOW_ARTIFACTS_DESTINATION"] == f"{tmp_path}/runs/server/artifacts"
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"):
        assert told[name] == SERVICES["mlflow"]["environment"][name]


def test_make_mlflow_server_takes_a_database(tmp_path):
    told = made(tmp_path, FUSIONBENCH_DB="postgresql://me:secret@db:5432/runs")
    assert told["MLFLOW_BACKEND_STORE_URI"] == "postgresql+pg8000://me:secret@db:5432/runs"


def test_the_linters_find_what_is_wrong(tmp_path):
    broken = tmp_path / "compose.yaml"
    broken.write_text(yaml.safe_dump({"services": {"mlflow": {"imagee": "x"}}}), "utf-8")
    for file, code in ((ROOT / "docker" / "compose.yaml", 0), (broken, 1)):
        schema = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
        assert subprocess.run(schema, capture_output=True, env=venv()).returncode == code
    root = tmp_path / "Dockerfile"
    root.write_text("FROM ubuntu:latest\nRUN apt-get install g++\n", "utf-8")
    for file, code in ((ROOT / "docker" / "Dockerfile", 0), (root, 1)):
        assert subprocess.run(["hadolint", str(file)], capture_output=True, env=venv()).returncode == code


def venv() -> dict[str, str]:
    """Return the environment in which the programs beside this Python are found first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
