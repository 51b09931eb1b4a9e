"""One MLflow run with a local working folder.

Metrics are buffered and written in batches at the end of an epoch, off the step and before the epoch's checkpoint, so
that what a checkpoint has seen is always in the store. A resumed run goes on in the same MLflow run and writes no point
twice.
"""

from __future__ import annotations

import fcntl
import json
import math
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlparse
from urllib.request import url2pathname

from fusionbench.errors import UserError
from fusionbench.files import link, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

Phase = Literal["fit", "test", "done"]
LONGEST_PARAM = 6000
RESUMED = "fusionbench.resumed"
_BATCH = 500
_TENSORS = ".safetensors"  # may be of many gigabytes, and is replaced, never changed


class Place(Protocol):
    """Where a run is kept; ``fusionbench.tracking.Store`` is one."""

    client: MlflowClient
    folder: Path


class TrackedRun:
    """One MLflow run and its working folder.

    Args:
        store: Where it is kept.
        run_id: MLflow's id.
    """

    leads = True  # this process tracks; the others of a run on several devices have a FollowedRun

    def __init__(self, store: Place, run_id: str) -> None:
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
        """Upload a file, or a folder's content; where the store is a folder of the same disk, tensors are linked."""
        if not path.is_dir():
            self.store.client.log_artifact(self.run_id, str(path), folder)
            return
        there, linked = self._store_folder(), set[Path]()
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        if there is not None:
            place = there / (folder or "")
            linked = {f for f in files if f.suffix == _TENSORS and link(f, place / f.relative_to(path))}
        if not linked:
            self.store.client.log_artifacts(self.run_id, str(path), folder)
            return
        for file in (file for file in files if file not in linked):
            inside = Path(folder or "") / file.parent.relative_to(path)
            self.store.client.log_artifact(self.run_id, str(file), inside.as_posix())

    def _store_folder(self) -> Path | None:
        """Return the folder of this machine that the store keeps the run's artifacts in, None where it is elsewhere."""
        uri = urlparse(str(self.store.client.get_run(self.run_id).info.artifact_uri))
        return Path(url2pathname(uri.path)) if uri.scheme == "file" else None

    def artifact(self, path: str) -> Path:
        """Return an artifact's local path: in the working folder, else in the store's, else a download.

        Raises:
            UserError: The run has no such artifact.
        """
        from mlflow.exceptions import MlflowException

        if (self.folder / path).exists() and self.phase == "done":
            return self.folder / path
        there = self._store_folder()
        if there is not None and (there / path).exists():
            return there / path
        place = self.folder / "downloads"
        try:
            place.mkdir(parents=True, exist_ok=True)
            return Path(self.store.client.download_artifacts(self.run_id, path, str(place)))
        except (MlflowException, OSError):
            raise UserError(f"run {self.run_id} has no artifact '{path}': it did not end well; fit it again") from None

    def has(self, path: str) -> bool:
        """Say whether an artifact is there, in the working folder or in the store."""
        from mlflow.exceptions import MlflowException

        if (self.folder / path).exists() and self.phase == "done":
            return True
        try:
            listed = self.store.client.list_artifacts(self.run_id, path.rpartition("/")[0] or None)
        except (MlflowException, OSError):
            return False
        return any(item.path == path for item in listed)

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


class FollowedRun(TrackedRun):
    """The same run in the hands of a process that does not lead: it knows the folder, and tracks nothing.

    Args:
        folder: The run's working folder, on a disk that all processes share.
        phase: How far the run has come.
    """

    leads = False

    def __init__(self, folder: Path, phase: Phase) -> None:
        super().__init__(_NoStore(folder.parent.parent), folder.name)
        self._phase: Phase = phase

    @property
    def phase(self) -> Phase:
        """How far the run has come."""
        return self._phase

    def set_phase(self, phase: Phase, fingerprint: str | None = None) -> None:
        """Go on to the next phase, beside the process that leads."""
        self._phase = phase

    def _nothing(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the arguments of each of these
        """Leave it to the process that leads."""

    log_metrics = flush = log_params = tag = log_dataset = log_artifact = _nothing


@dataclass
class _NoStore:
    """Where a followed run lies; there is no client."""

    folder: Path
    client: Any = None


def metric_name(key: str) -> str:
    """Return a name that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", key)
