"""What a run is called in the store, what it came to, read back from there, and what makes a report of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd

from fusionbench import build
from fusionbench.config import Config
from fusionbench.data.module import FusionData
from fusionbench.encoders import fallback
from fusionbench.tracking import TrackedRun

INTERVAL = "test_interval/"
TEXT = "fusionbench.text"  # tag: the content of the texts that a run reads
_PLAIN = ("full", "none")  # contents that need not be told


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
        method: Method = ...,
    ) -> Summary:
        """Write figures and ``metrics.json`` into ``folder`` and return the scores, those of texts alone besides."""


@dataclass(frozen=True)
class Method:
    """What a report calls the run that it is of.

    Attributes:
        name: Its name in tables.
        trainable: Trainable parameters, None where unknown.
        run_id: MLflow's id.
        text: The content of its texts, ``none`` where it reads none.
    """

    name: str = "fusion"
    trainable: int | None = None
    run_id: str = ""
    text: str = "none"


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
        text: The content of its texts, ``none`` where it reads none.
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
    text: str = "none"

    def label(self, cases: int) -> str:
        """Return what it is, with its number of cases where that is not ``cases``, since some lack its modality."""
        name = with_text(self.strategy, self.text)
        return name if self.cases == cases else f"{name} (only {self.cases} cases)"


def with_text(name: str, content: str) -> str:
    """Return a name in tables with the content of the texts, where that is not all of them."""
    return name if content in _PLAIN else f"{name}, {content} text"


def read_method(run: TrackedRun) -> Method:
    """Read what a run that has been trained is called, before it ends."""
    run.flush()
    tags = run.tags()
    text = tags.get(TEXT, "none")
    return Method(with_text(_strategy(tags), text), int(run.metrics()["parameters/trainable"]), run.run_id, text)


def run_tags(config: Config, source: FusionData) -> dict[str, str]:
    """Return what a run is found and told apart by in the store."""
    specs = source.problem.modalities
    return {
        "mlflow.source.name": "fusionbench fit",
        "mlflow.source.type": "LOCAL",
        "fusionbench.fusion": config.fusion["name"],
        "fusionbench.adapt": config.adapt["name"],
        "fusionbench.modalities": ", ".join(source.problem.modalities),
        "fusionbench.data": config.data["name"],
        "fusionbench.data_version": source.dataset.version,
        "fusionbench.data_fingerprint": source.fingerprint,
        "fusionbench.seed": str(config.seed),
        TEXT: text_content(source),
        "fusionbench.allow": ", ".join(source.allowed) or "none",
        "fusionbench.fallback": ", ".join(fallback.notes(build.encoder_nodes(config, specs))) or "none",
        "fusionbench.random_weights": ", ".join(build.random_encoders(config, source.problem.modalities)) or "none",
    }


def text_content(source: FusionData) -> str:
    """Return which content of the texts is read; ``none`` where no modality is a text."""
    return source.texts.content if any(spec.kind == "text" for spec in source.problem.modalities.values()) else "none"


def run_name(config: Config, source: FusionData) -> str:
    """Return the name that the config gives, or one made of what runs are told apart by."""
    if config.tracking.run_name:
        return config.tracking.run_name
    chosen = list(config.data.get("modalities") or [])
    fusion = chosen[0] if config.fusion["name"] == "unimodal" and len(chosen) == 1 else config.fusion["name"]
    content = text_content(source)
    words = [fusion, config.adapt["name"], config.data["name"], *([content] if content not in _PLAIN else [])]
    return "-".join([*words, f"s{config.seed}"])


def log_summary(run: TrackedRun, summary: Summary) -> None:
    """Track scores and intervals."""
    run.log_metrics({f"test/{k}": v for k, v in summary.scores.items()})
    for name, (low, high) in summary.intervals.items():
        run.log_metrics({f"{INTERVAL}{name}/low": low, f"{INTERVAL}{name}/high": high})


def read_result(run: TrackedRun, reused: bool = False) -> Result:
    """Read a finished run's result."""
    values, tags = run.metrics(), run.tags()
    names = {k.removeprefix(INTERVAL).rpartition("/")[0] for k in values if k.startswith(INTERVAL)}
    return Result(
        run.name,
        run.run_id,
        _strategy(tags),
        {k.removeprefix("test/"): v for k, v in values.items() if k.startswith("test/")},
        {n: (values[f"{INTERVAL}{n}/low"], values[f"{INTERVAL}{n}/high"]) for n in names},
        int(values["parameters/trainable"]),
        int(values["test/cases"]),
        int(values["test/groups"]),
        reused,
        tags.get(TEXT, "none"),
    )


def _strategy(tags: Mapping[str, str]) -> str:
    alone = tags["fusionbench.fusion"] == "unimodal"
    return f"{tags['fusionbench.modalities']} alone" if alone else tags["fusionbench.fusion"]
