"""Where runs are kept in MLflow: started, found again by identity, id or name; case ids hashed with the store's key."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench.errors import UserError, nearest
from fusionbench.sections import TrackingOptions
from fusionbench.tracked_run import LONGEST_PARAM, RESUMED, TrackedRun, metric_name

__all__ = ["LONGEST_PARAM", "RESUMED", "Store", "TrackedRun", "metric_name", "store_uri"]


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
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = (self.folder / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None
        tags = {"mlflow.experimentKind": "custom_model_development"}  # opens the UI's page for training runs
        try:
            return str(self.client.create_experiment(name, artifact_location=local, tags=tags))
        except MlflowException:
            found = self.client.get_experiment_by_name(name)  # made by another process in between
            if found is None:
                raise
            return str(found.experiment_id)

    def start(self, name: str, fingerprint: str, tags: Mapping[str, str]) -> TrackedRun:
        """Open a new run."""
        all_tags = {**tags, "fusionbench.fingerprint": fingerprint, "mlflow.user": "fusionbench"}
        run_id = self.client.create_run(self.experiment, run_name=name, tags=all_tags).info.run_id
        run = TrackedRun(self, run_id)
        run.set_phase("fit", fingerprint=fingerprint)
        return run

    def find_finished(self, fingerprint: str, artifacts: Sequence[str] = ()) -> TrackedRun | None:
        """Return the newest run with this fingerprint that ended well, in whatever experiment, if there is one.

        Args:
            fingerprint: The identity.
            artifacts: What it must still have.
        """
        found = self._search(f"tags.`fusionbench.fingerprint` = '{fingerprint}' and attributes.status = 'FINISHED'")
        runs = (TrackedRun(self, run.info.run_id) for run in found)
        return next((run for run in runs if all(map(run.has, artifacts))), None)

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
