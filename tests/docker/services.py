"""What docker/compose.yaml starts, started without docker: PostgreSQL, an S3 store, and the very same MLflow server."""

import contextlib
import glob
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?}")
START_SECONDS = 120


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def resolved(text: str, variables: Mapping[str, str]) -> str:
    """Put variables into a value as compose does; one without value or default is a KeyError."""
    return VARIABLE.sub(lambda found: variables.get(found[1]) or _default(found), text)


def _default(found: re.Match[str]) -> str:
    if found[2] != "-":
        raise KeyError(found[1])
    return found[3]


@contextlib.contextmanager
def postgresql(user: str, password: str, database: str) -> Iterator[int]:
    """Run an empty PostgreSQL that asks for the password, as ``postgres`` where we are root; yield its port."""
    programs = _postgresql_programs()
    folder = Path(tempfile.mkdtemp(prefix="fusionbench-postgresql-"))  # pytest's own folders are closed to other users
    account = {"user": "postgres", "group": "postgres", "extra_groups": ()} if os.geteuid() == 0 else {}
    if account:
        shutil.chown(folder, "postgres", "postgres")

    def run(program: str, *arguments: str) -> None:
        command = [programs / program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, **account)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr

    port, data, secret = free_port(), str(folder / "data"), folder / "password"
    secret.write_text(password, "utf-8")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        run("initdb", "-D", data, "-U", user, "-E", "UTF8", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync")
        run("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        with _stopping(lambda: run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")):
            _create_database(port, user, password, database)
            yield port
    finally:
        shutil.rmtree(folder)


def _postgresql_programs() -> Path:
    """Return the folder of initdb; Debian keeps it off the path. Skips without PostgreSQL, but never in CI."""
    found = shutil.which("initdb") or max(glob.glob("/usr/lib/postgresql/*/bin/initdb"), default=None)
    if found is None and not os.environ.get("CI"):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    assert found, "CI has no PostgreSQL: .ci/run installs it"
    return Path(found).parent


@contextlib.contextmanager
def _stopping(stop) -> Iterator[None]:
    try:
        yield
    finally:
        stop()


def _create_database(port: int, user: str, password: str, database: str) -> None:
    import pg8000.native

    with contextlib.closing(pg8000.native.Connection(user, "127.0.0.1", "postgres", port, password)) as connection:
        connection.run(f'CREATE DATABASE "{database}"')


@contextlib.contextmanager
def s3_store(bucket: str) -> Iterator[str]:
    """Run moto's S3 server with one empty bucket; yield its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        s3_client(address).create_bucket(Bucket=bucket)
        yield address
    finally:
        server.stop()


def s3_client(address: str):
    """Return a client of the S3 server; moto takes any key."""
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=address, **keys)


@contextlib.contextmanager
def compose_mlflow(folder: Path) -> Iterator[tuple[str, str]]:
    """Run compose's ``mlflow`` service with compose's own arguments and environment, all hosts replaced.

    Yields:
        The server's address and the S3 store's.
    """
    service = COMPOSE["services"]["mlflow"]
    password = secrets.token_hex(24)
    keys = {"POSTGRES_PASSWORD": password, "S3_ACCESS_KEY": secrets.token_hex(8), "S3_SECRET_KEY": password}
    environment = {name: resolved(text, keys) for name, text in service["environment"].items()}
    database = urlsplit(environment["MLFLOW_BACKEND_STORE_URI"])
    bucket = urlsplit(environment["MLFLOW_ARTIFACTS_DESTINATION"]).netloc
    with postgresql(database.username, password, database.path.strip("/")) as port, s3_store(bucket) as store:
        here = database._replace(netloc=f"{database.username}:{password}@127.0.0.1:{port}")
        environment |= {"MLFLOW_BACKEND_STORE_URI": here.geturl(), "MLFLOW_S3_ENDPOINT_URL": store}
        with mlflow(service["command"], environment, folder / "server.log") as address:
            yield address, store


@contextlib.contextmanager
def mlflow(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """Run ``mlflow`` with a command's arguments but on a free port of 127.0.0.1; yield its address once it answers."""
    port = free_port()
    arguments = list(command)
    arguments[arguments.index("--host") + 1] = "127.0.0.1"
    arguments[arguments.index("--port") + 1] = str(port)
    program = [sys.executable, "-m", "mlflow", *arguments]
    variables = {**os.environ, **environment}
    with (
        log.open("w") as out,
        subprocess.Popen(
            program, env=variables, cwd=log.parent, stdout=out, stderr=out, start_new_session=True
        ) as server,
    ):
        try:
            _wait(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def _wait(server: subprocess.Popen, address: str, log: Path) -> None:
    for _ in range(START_SECONDS * 5):
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(f"{address}/health", timeout=30):
            return
        assert server.poll() is None, log.read_text("utf-8")
        threading.Event().wait(0.2)
    pytest.fail(f"the MLflow server does not answer:\n{log.read_text('utf-8')}")
