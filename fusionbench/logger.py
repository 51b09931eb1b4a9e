"""Lightning's view of a tracked run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from fusionbench.tracking import TrackedRun


class RunLogger(Logger):
    """Lightning's view of a tracked run."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        """Unused: checkpoints lie in the run's working folder."""
        return "fusionbench"

    @property
    def version(self) -> str:
        """The run's id."""
        return self.run.run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Buffer points; Lightning's ``epoch`` says nothing that the step does not."""
        self.run.log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step or 0)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Lightning's signature
        """Do nothing: parameters come from the config."""
