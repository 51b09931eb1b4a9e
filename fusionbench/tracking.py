"""Runs in MLflow, each with a local working folder.

Metrics are buffered and written in batches at the end of an epoch, off the step and before the epoch's checkpoint, so
that what a checkpoint has seen is always in the store. A resumed run goes on in the same MLflow run and writes no point
twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from fusionbench.errors import UserError, nearest
from fusionbench.files import write_json
from fusionbench.sections import TrackingOptions

Phase = Literal["fit", "test", "done"]
LONGEST_PARAM = 6000
RESUMED = "fusionbench.resumed"
_BATCH = 500


def store_uri(options: TrackingOptions) -> str:
    """Return where runs are kept: ``uri``, else ``$MLFLOW_TRACKING_URI``, else SQLite in ``folder``."""
    local = f"sqlite:///{Path(options.folder).absolute() / 'mlflow.db'}"
    return options.uri or os.environ.get("MLFLOW_TRACKING_URI") or local


class Store:
    """The place where runs are kept.

    Args:
        options: The config's ``tracking`` section.
    """

    def __init__(self, options: TrackingOptions) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.folder = Path(options.folder).absolute()
        self.uri = store_uri(options)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.client = MlflowClient(self.uri)
            self.experiment = self._experiment(options.experiment)
        except MlflowException as error:
            raise UserError(f"the tracking store '{self.uri}' cannot be used: {str(error).splitlines()[0]}") from None

    @staticmethod
    def is_there(options: TrackingOptions) -> bool:
        """Say whether there can be runs already, without making a place for them."""
        uri = store_uri(options)
        return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = (self.folder / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None
        tags = {"mlflow.experimentKind": "custom_model_development"}  # opens the UI's page for training runs
        return str(self.client.create_experiment(name, artifact_location=local, tags=tags))

    def start(self, name: str, fingerprint: str, tags: Mapping[str, str]) -> TrackedRun:
        """Open a new run."""
        all_tags = {**tags, "fusionbench.fingerprint": fingerprint, "mlflow.user": "fusionbench"}
        run_id = self.client.create_run(self.experiment, run_name=name, tags=all_tags).info.run_id
        run = TrackedRun(self, run_id)
        run.set_phase("fit", fingerprint=fingerprint)
        return run

    def find_finished(self, fingerprint: str) -> TrackedRun | None:
        """Return the newest run with this fingerprint that ended well, in whatever experiment, if there is one."""
        found = self._search(f"tags.`fusionbench.fingerprint` = '{fingerprint}' and attributes.status = 'FINISHED'")
        return TrackedRun(self, found[0].info.run_id) if found else None

    def find_unfinished(self, fingerprint: str) -> TrackedRun | None:
        """Return the newest run with this fingerprint that was cut off, if the store has it and its folder is here."""
        for run_id in self.unfinished().get(fingerprint, ()):
            if self._has(run_id):
                return TrackedRun(self, run_id)
        return None

    def unfinished(self) -> dict[str, list[str]]:
        """Return the ids of the runs whose folder here says that they were cut off, newest first, by fingerprint."""
        states = []
        for path in (self.folder / "work").glob("*/state.json"):
            state = json.loads(path.read_text("utf-8"))
            if state.get("fingerprint") and state.get("phase") != "done":
                states.append((path.stat().st_mtime, path.parent.name, state["fingerprint"]))
        found: dict[str, list[str]] = {}
        for _, run_id, fingerprint in sorted(states, reverse=True):
            found.setdefault(fingerprint, []).append(run_id)
        return found

    def search_all(self, condition: str) -> Iterator[Any]:
        """Yield the MLflow runs of all experiments that meet a condition, newest first, however many there are."""
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        token = None
        while True:
            page = self.client.search_runs(
                experiments, condition, max_results=1000, order_by=["attributes.start_time DESC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def open(self, name: str) -> TrackedRun:
        """Return a run by id, by the first six or more signs of it, or by name (the newest of that name).

        Raises:
            UserError: There is none, or several ids begin so; names the nearest.
        """
        if self._has(name):
            return TrackedRun(self, name)
        if re.fullmatch(r"[\w .:/-]+", name):
            named = self._search(f"attributes.run_name = '{name}'")
            if named:
                return TrackedRun(self, named[0].info.run_id)
        newest = self._search("")
        starts = [r.info.run_id for r in newest if len(name) >= 6 and r.info.run_id.startswith(name)]
        if len(starts) == 1:
            return TrackedRun(self, starts[0])
        if starts:
            raise UserError(f"'{name}' begins the ids of {len(starts)} runs; give more of it")
        names = list(dict.fromkeys(str(r.info.run_name) for r in newest))[:8]
        raise UserError(f"there is no run '{name}' in '{self.uri}'{nearest(name, names)}")

    def _has(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException:
            return False

    def _search(self, condition: str) -> list[Any]:
        """Return the newest runs of all experiments that meet a condition, at most 1,000."""
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        order = ["attributes.start_time DESC"]
        return list(self.client.search_runs(experiments, condition, max_results=1000, order_by=order))

    def anonymous(self, identifier: str) -> str:
        """Return a keyed hash of a case or patient id, stable within this store.

        The key lies in the store's folder and is never tracked, so ids as short as "0042" cannot be found by trial;
        teams that compare runs from several machines share one by ``$FUSIONBENCH_ID_KEY``.
        """
        return hmac.new(self._key(), identifier.encode(), hashlib.sha256).hexdigest()[:16]

    def _key(self) -> bytes:
        given = os.environ.get("FUSIONBENCH_ID_KEY")
        if given:
            return given.encode()
        path = self.folder / "id.key"
        if not path.exists():
            temporary = path.with_name(f"id.key.{os.getpid()}")
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_hex(32), "utf-8")
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        return path.read_text("utf-8").strip().encode()


class TrackedRun:
    """One MLflow run and its working folder.

    Args:
        store: Where it is kept.
        run_id: MLflow's id.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self.run_id = store, run_id
        self.folder = store.folder / "work" / run_id
        self._buffer: list[tuple[str, float, int, int]] = []
        self._seen: set[tuple[str, int]] = set()
        self._lock: Any = None

    @property
    def name(self) -> str:
        """The run's name in the UI."""
        return str(self.store.client.get_run(self.run_id).info.run_name)

    @property
    def phase(self) -> Phase:
        """How far the run has come."""
        path = self.folder / "state.json"
        return json.loads(path.read_text("utf-8")).get("phase", "fit") if path.exists() else "fit"  # type: ignore[no-any-return]

    def set_phase(self, phase: Phase, fingerprint: str | None = None) -> None:
        """Note durably how far the run has come."""
        path = self.folder / "state.json"
        old = json.loads(path.read_text("utf-8")) if path.exists() else {}
        write_json(path, {**old, "phase": phase, **({"fingerprint": fingerprint} if fingerprint else {})})

    def lock(self) -> None:
        """Keep the run to this process until it ends.

        Raises:
            UserError: Another process is working on it.
        """
        file = (self.folder / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise UserError(f"run {self.run_id} is in the hands of another process; wait for it or stop it") from None
        self._lock = file

    def resume(self) -> None:
        """Go on with a run that was cut off: set it running again and learn which points it already has."""
        client = self.store.client
        client.update_run(self.run_id, status="RUNNING")
        client.set_tag(self.run_id, RESUMED, "true")  # start to end is then no measure of its time
        for key in client.get_run(self.run_id).data.metrics:
            self._seen |= {(key, point.step) for point in client.get_metric_history(self.run_id, key)}

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Buffer points; what is nan (a class that is absent) is left out."""
        now = int(time.time() * 1000)
        for key, value in values.items():
            name = metric_name(key)
            if math.isfinite(value) and (name, step) not in self._seen:
                self._seen.add((name, step))
                self._buffer.append((name, float(value), now, step))

    def flush(self) -> None:
        """Write the buffered points."""
        from mlflow.entities import Metric

        points, self._buffer = self._buffer, []
        for start in range(0, len(points), _BATCH):
            self.store.client.log_batch(self.run_id, metrics=[Metric(*p) for p in points[start : start + _BATCH]])

    def log_params(self, values: Mapping[str, object]) -> None:
        """Log flat parameters; the whole config is an artifact besides."""
        from mlflow.entities import Param

        known = self.store.client.get_run(self.run_id).data.params
        params = [Param(k, str(v)[:LONGEST_PARAM]) for k, v in values.items() if k not in known]
        for start in range(0, len(params), 100):
            self.store.client.log_batch(self.run_id, params=params[start : start + 100])

    def tag(self, values: Mapping[str, object]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        self.store.client.log_batch(self.run_id, tags=[RunTag(k, str(v)) for k, v in values.items()])

    def log_dataset(self, name: str, fingerprint: str, version: str) -> None:
        """Say what data the run is on, for the UI's dataset column."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, fingerprint, source_type="local", source=f"fusionbench data '{name}' version {version}")
        self.store.client.log_inputs(
            self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "all splits")])]
        )

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, or a folder's content."""
        if path.is_dir():
            self.store.client.log_artifacts(self.run_id, str(path), folder)
        else:
            self.store.client.log_artifact(self.run_id, str(path), folder)

    def artifact(self, path: str) -> Path:
        """Return an artifact's local path: the working folder's copy, else a download into it.

        Raises:
            UserError: The run has no such artifact.
        """
        from mlflow.exceptions import MlflowException

        if (self.folder / path).exists() and self.phase == "done":
            return self.folder / path
        place = self.folder / "downloads"
        try:
            place.mkdir(parents=True, exist_ok=True)
            return Path(self.store.client.download_artifacts(self.run_id, path, str(place)))
        except (MlflowException, OSError):
            raise UserError(f"run {self.run_id} has no artifact '{path}': it did not end well; fit it again") from None

    def metrics(self) -> dict[str, float]:
        """Return the last value of every metric."""
        return dict(self.store.client.get_run(self.run_id).data.metrics)

    def tags(self) -> dict[str, str]:
        """Return the run's tags."""
        return dict(self.store.client.get_run(self.run_id).data.tags)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Write what is buffered and close the run."""
        self.flush()
        self.store.client.set_terminated(self.run_id, status)
        if status == "FINISHED":  # last, so that a run which is cut off just before is still found and finished
            self.set_phase("done")
            for name in ("checkpoints", "artifacts", "report"):  # tracked, or of no more use
                shutil.rmtree(self.folder / name, ignore_errors=True)
        if self._lock:
            self._lock.close()


def metric_name(key: str) -> str:
    """Return a name that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", key)
