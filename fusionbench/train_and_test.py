"""What every process of a run does: fit, the best checkpoint, model and predictions; rank 0 alone tracks and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import pandas as pd

from fusionbench import build, inference, maps, models, provenance, training
from fusionbench import config as configs
from fusionbench.config import Config
from fusionbench.data.module import FusionData
from fusionbench.distributed.deepspeed_config import deepspeed_config
from fusionbench.distributed.release import released
from fusionbench.distributed.zero import Zero
from fusionbench.files import write_json
from fusionbench.fusion.base import Strategy, UnimodalState
from fusionbench.layers.frozen import parameter_counts
from fusionbench.task import FusionTask
from fusionbench.tracking import TrackedRun


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        table: Predictions of the test split.
        shown: File of a few cases' maps, if there are any.
    """

    table: pd.DataFrame
    shown: Path | None


def train_and_test(
    run: TrackedRun,
    config: Config,
    source: FusionData,
    states: Mapping[str, UnimodalState],
    say: Callable[[str], None],
    anonymous: Callable[[str], str],
) -> Outcome:
    """Run the phases that are not done yet: fit, then test with the best checkpoint.

    Args:
        run: What is tracked; a ``FollowedRun`` in all processes but the first.
        config: Of the run.
        source: Its data.
        states: What it starts from, by modality.
        say: Tells the user what is going on.
        anonymous: Hashes the id of a case or patient.
    """

    def start(made: Strategy) -> None:
        if states:
            made.load_unimodal(states)

    task = build.task(config, source, start)
    trainer = training.trainer(config, run, source, say)
    with released(trainer, source):
        if run.phase == "fit":
            if run.leads:
                _log_start(run, config, source)
            training.fit(trainer, task, source, run, config.trainer)
            run.set_phase("test")
        with trainer.strategy.model_sharded_context():
            task.configure_model()
        if isinstance(trainer.strategy, Zero):
            trainer.strategy.place(task)
        training.load_best(task, run)
        _log_model(run, task, config, source)
        table = _log_predictions(run, task, config, source, trainer, anonymous)
        shown = maps.write(run.folder / "maps.npz" if run.leads else None, task, source, table, anonymous)
    return Outcome(table, shown)


def _log_start(run: TrackedRun, config: Config, source: FusionData) -> None:
    """Track what the run is made of, before it trains."""
    folder = run.folder / "artifacts"
    write_json(folder / "environment.json", provenance.environment())
    write_json(folder / "data.json", {"fingerprint": source.fingerprint, "counts": source.counts().to_dict("index")})
    training.write_yaml(folder / "config.yaml", config)
    engine = deepspeed_config(config.trainer)
    if engine:
        write_json(folder / "deepspeed.json", engine)
    for path in sorted(folder.iterdir()):
        run.log_artifact(path)
    run.log_params(configs.flatten(config.public()))
    run.log_dataset(config.data["name"], source.fingerprint, source.dataset.version)


def _log_model(run: TrackedRun, task: FusionTask, config: Config, source: FusionData) -> None:
    folder = run.folder / "model"
    models.save(folder, task.strategy, config, source.fitted(), task.base_checksum(), write=run.leads)
    run.log_artifact(folder, "model")
    counts = parameter_counts(task.strategy)
    run.log_metrics({f"parameters/{k}": float(v) for k, v in counts.items()})
    run.log_metrics({"cost/gflops_per_case": inference.gflops_per_case(task, source)})


def _log_predictions(
    run: TrackedRun,
    task: FusionTask,
    config: Config,
    source: FusionData,
    trainer: L.Trainer,
    anonymous: Callable[[str], str],
) -> pd.DataFrame:
    """Track the predictions of the test split, and for a run that can be a stage 1 its score on the training cases."""
    if config.fusion["name"] == "unimodal":
        rows = inference.rows(trainer, task, source, "train")
        run.log_metrics({"train_final/mAP": task.score(rows)["mAP"]})
    rows = inference.rows(trainer, task, source, "test")
    table = inference.predictions(task, rows, "test")
    if run.leads:
        hashed = table.assign(**{c: table[c].map(anonymous) for c in ("case", "group")})
        inference.write_table(hashed, run.folder / "predictions.parquet")
        run.log_artifact(run.folder / "predictions.parquet")
    return table
