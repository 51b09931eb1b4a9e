"""Weights that the hub does not give, found out before a sweep: a text tells at once, a picture only as it trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fusionbench.ablate.job import Job
from fusionbench.encoders.checkpoint import Checkpoint
from fusionbench.errors import UserError


def refuse_without(jobs: Sequence[Job]) -> None:
    """Refuse the open jobs that start from hub weights of a refused job, if the hub does not give these.

    The hub is asked once for the config of each such model, and for none where no job was refused, so that a plan
    whose texts could be read asks nothing.

    Args:
        jobs: Of one table, stage 1 and texts alone among them.
    """
    doubtful = {model for job in jobs if job.state == "failed" for model in _hub_models(job)}
    lacking = {model: error for model in sorted(doubtful) if (error := _refusal(model)) is not None}
    for job in jobs:
        wanted = [model for model in _hub_models(job) if model in lacking]
        if job.open and wanted:
            job.refuse(lacking[wanted[0]])


def _hub_models(job: Job) -> Iterator[str]:
    """Yield the models that a job's encoders take from the hub."""
    if job.config is None:
        return
    chosen = job.config.data.get("modalities")
    for modality, node in job.config.encoder.items():
        used = modality == "*" or chosen is None or modality in chosen
        if used and node.get("weights") == "hub" and node.get("model"):
            yield str(node["model"])


def _refusal(model: str) -> UserError | None:
    try:
        Checkpoint(model, None).file("config.json")
    except UserError as error:
        return error
    return None
