"""What a finished run came to, read back from the store, and what makes a report of its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd

from fusionbench.tracking import TrackedRun

INTERVAL = "test_interval/"


class Summary(Protocol):
    """What a report of a run's predictions holds."""

    @property
    def scores(self) -> dict[str, float]:
        """Each metric's value on the test split."""

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Each metric's 95 % interval."""


class Summarise(Protocol):
    """Turns predictions into scores and figures in a folder; ``report``, which lies above ``run``, provides it."""

    def __call__(
        self,
        predictions: pd.DataFrame,
        classes: Sequence[str],
        multilabel: bool,
        folder: Path,
        seed: int = 0,
        text_only: Mapping[str, Result] = ...,
        maps: Path | None = None,
    ) -> Summary:
        """Write figures and ``metrics.json`` into ``folder`` and return the scores, those of texts alone besides."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        name: Its name.
        run_id: MLflow's id.
        strategy: The fusion's name, and for unimodal the modality's.
        scores: Test metrics by name.
        intervals: 95 % intervals.
        trainable: Trainable parameters.
        cases: Test cases.
        groups: Groups (patients) among them.
        reused: It was there already.
    """

    name: str
    run_id: str
    strategy: str
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    trainable: int
    cases: int
    groups: int
    reused: bool = False

    def label(self, cases: int) -> str:
        """Return what it is, with its number of cases where that is not ``cases``, since some lack its modality."""
        return self.strategy if self.cases == cases else f"{self.strategy} (only {self.cases} cases)"


def log_summary(run: TrackedRun, summary: Summary) -> None:
    """Track scores and intervals."""
    run.log_metrics({f"test/{k}": v for k, v in summary.scores.items()})
    for name, (low, high) in summary.intervals.items():
        run.log_metrics({f"{INTERVAL}{name}/low": low, f"{INTERVAL}{name}/high": high})


def read_result(run: TrackedRun, reused: bool = False) -> Result:
    """Read a finished run's result."""
    values, tags = run.metrics(), run.tags()
    names = {k.removeprefix(INTERVAL).rpartition("/")[0] for k in values if k.startswith(INTERVAL)}
    alone = tags["fusionbench.fusion"] == "unimodal"
    return Result(
        run.name,
        run.run_id,
        f"{tags['fusionbench.modalities']} alone" if alone else tags["fusionbench.fusion"],
        {k.removeprefix("test/"): v for k, v in values.items() if k.startswith("test/")},
        {n: (values[f"{INTERVAL}{n}/low"], values[f"{INTERVAL}{n}/high"]) for n in names},
        int(values["parameters/trainable"]),
        int(values["test/cases"]),
        int(values["test/groups"]),
        reused,
    )
