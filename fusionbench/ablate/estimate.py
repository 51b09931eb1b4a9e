"""How long runs will take, from how long others took."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from fusionbench.ablate.job import Job
from fusionbench.ablate.plan import Plan
from fusionbench.config import Config, flatten
from fusionbench.tracking import RESUMED

_PARAMS = ("trainer.max_epochs", "trainer.limit_train_batches", "data.size")
Key = tuple[object, ...]


def estimate(plan: Plan) -> None:
    """Give each open job the median time of the finished runs with its strategy, tuning, encoders, data and epochs.

    Where there is none, it is the median of the same table's runs; without any of those the job keeps None.
    """
    measured: dict[Key, list[float]] = {}
    for run in plan.finished.values():
        if run.info.end_time and RESUMED not in run.data.tags:
            measured.setdefault(_of_run(run), []).append(_seconds(run))
    own = [_seconds(plan.finished[job.fingerprint]) for job in _all(plan) if job.fingerprint in plan.finished]
    for job in _all(plan):
        if job.open and job.config is not None:
            data = plan.sources(job.config)
            alike = measured.get(_of_config(job.config, ", ".join(data.problem.modalities), data.fingerprint), own)
            job.seconds = median(alike) if alike else None


def _all(plan: Plan) -> Iterable[Job]:
    return [*plan.stage_ones.values(), *plan.jobs]


def _seconds(run: Any) -> float:  # noqa: ANN401 - an MLflow run
    return float(run.info.end_time - run.info.start_time) / 1000


def _of_run(run: Any) -> Key:  # noqa: ANN401 - an MLflow run
    tags, params = run.data.tags, run.data.params
    names = ("fusion", "adapt", "modalities", "data_fingerprint")
    return tuple(tags.get(f"fusionbench.{name}") for name in names) + _sizes(params)


def _of_config(config: Config, modalities: str, data: str) -> Key:
    params = {key: str(value) for key, value in flatten(config.public()).items()}
    return (config.fusion["name"], config.adapt["name"], modalities, data, *_sizes(params))


def _sizes(params: dict[str, str]) -> Key:
    """Return the parameters that say how large a run is."""
    encoders = sorted((k, v) for k, v in params.items() if k.startswith("encoder."))
    return (*(params.get(name) for name in _PARAMS), *encoders)
