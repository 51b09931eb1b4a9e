"""The whole program on one screen: config → data → strategy → Trainer → tracked run, in one or two stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
import pandas as pd

from fusionbench import build, inference, maps, models, preflight, provenance, training
from fusionbench import config as configs
from fusionbench.config import Config
from fusionbench.data.module import FusionData
from fusionbench.data.texts import unread
from fusionbench.encoders import fallback
from fusionbench.errors import UserError
from fusionbench.files import write_json
from fusionbench.fingerprint import fingerprint
from fusionbench.fusion.base import Strategy, UnimodalState
from fusionbench.layers.frozen import parameter_counts
from fusionbench.results import Result, Summarise, log_summary, read_method, read_result, run_name, run_tags
from fusionbench.stage_one import (
    needed,
    stage_one_config,
    stage_one_configs,
    stage_one_modalities,
    text_only_configs,
    text_only_notes,
    unimodal_state,
)
from fusionbench.task import FusionTask
from fusionbench.tracking import Store, TrackedRun

Say = Callable[[str], None]


@dataclass
class Session:
    """What the runs of one command share.

    Args:
        store: Where runs are kept.
        summarise: Makes a run's report.
        say: Tells the user what is going on.
        resume: Go on with runs that were cut off.
        source: Reads a config's data; one that keeps what it has read serves many runs.
        tags: Put on every run that is started.
        results: Finished runs so far.
        told: Whether the user knows by now if anything was resumed.
        prefixed: Whether the notes of a fusion begin with its name where others were trained before it; those of one
            modality alone always begin with its own.
    """

    store: Store
    summarise: Summarise
    say: Say
    resume: bool = False
    source: Callable[[Config], FusionData] = build.data
    tags: Mapping[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    told: bool = False
    prefixed: bool = False

    def note(self, of: str, text: str) -> None:
        """Tell a note on one of the runs."""
        self.say(f"{of}: note: {text}" if of else f"note: {text}")


@dataclass(frozen=True)
class Alone:
    """What a run has of its modalities alone.

    Attributes:
        states: What it starts from, by modality.
        texts: What it is held against: the result of each text alone, by modality.
    """

    states: Mapping[str, UnimodalState] = field(default_factory=dict)
    texts: Mapping[str, Result] = field(default_factory=dict)


def fit(config: Config, summarise: Summarise, say: Say, resume: bool = False) -> list[Result]:
    """Train, test and track a config; with ``init.stage1`` each modality alone first, and beside a fusion its texts.

    Returns:
        The results, stage 1 and texts alone first, the config's own run last.
    """
    config = fallback.settled(config)
    source = _checked(config, build.data)  # before a store is made
    for note in unread(source.texts.content, source.problem.modalities):
        say(f"note: {note}")
    return _fit(Session(Store(config.tracking), summarise, say, resume, prefixed=True), config, source)


def fit_in(session: Session, config: Config) -> list[Result]:
    """Do the same as ``fit`` in a session that other runs may share; its results grow by the config's."""
    return _fit(session, config, _checked(config, session.source))


def _checked(config: Config, read: Callable[[Config], FusionData]) -> FusionData:
    """Return a config's data once all mistakes that can be found before training have been looked for."""
    source = read(config)
    preflight.check(config, source)
    stage_one_configs(config, source)
    for own in text_only_configs(config, source).values():
        read(own)
    return source


def _fit(session: Session, config: Config, source: FusionData) -> list[Result]:
    states: dict[str, UnimodalState] = {}
    ended: dict[str, Result] = {}
    for name in stage_one_modalities(config, source):
        if name in config.init.runs:
            states[name] = unimodal_state(session.store.open(config.init.runs[name]), name)
        else:
            states[name], ended[name] = _fit_alone(session, stage_one_config(config, name), name, "stage 1")
    texts = text_only_configs(config, source)
    for name in (name for name in texts if name not in ended):
        _, ended[name] = _fit_alone(session, texts[name], name, "text only")
    alone = Alone(states, {name: ended[name] for name in texts})
    of = config.fusion["name"] if session.prefixed and ended else ""
    session.results.append(_fit_one(session, config, source, alone, of))
    return session.results


def _fit_alone(session: Session, own: Config, modality: str, why: str) -> tuple[UnimodalState, Result]:
    """Return the end of one modality's own run, of one that is there already or a new one."""
    source = session.source(own)
    found = session.store.find_finished(fingerprint(own, source, {}), needed(own))
    if found is not None:
        try:
            state = unimodal_state(found, modality)
        except UserError as error:
            session.say(f"note: {error}; training '{modality}' anew")
        else:
            session.say(f"{why}, {modality}: reusing run {found.run_id}")
            session.results.append(read_result(found, reused=True))
            return state, session.results[-1]
    session.say(f"{why}, {modality}: training it alone")
    session.results.append(_fit_one(session, own, source, Alone(), f"{why}, {modality}"))
    return unimodal_state(session.store.open(session.results[-1].run_id), modality), session.results[-1]


def _fit_one(session: Session, config: Config, source: FusionData, alone: Alone, of: str) -> Result:
    """Train, test and track one run, or go on with it; ``of`` is what its notes begin with, if anything."""
    run_id = fingerprint(config, source, alone.states)
    run = session.store.find_unfinished(run_id) if session.resume else None
    if run is None and session.resume:
        finished = session.store.find_finished(run_id, needed(config))
        if finished is not None:
            session.say(f"run {finished.run_id} has ended already")
            return read_result(finished, reused=True)
        if not session.told:
            session.say("there is no cut-off run of this config, data and code; starting a new one")
            session.told = True
    if run is not None:
        run.lock()
        run.resume()
        session.say(f"going on with run {run.run_id}")
        session.told = True
    else:
        tags = {**provenance.git(), **run_tags(config, source), **session.tags}
        run = session.store.start(run_name(config, source), run_id, tags)
        for name in build.random_encoders(config, source.problem.modalities):
            session.note(of, f"the encoder of '{name}' starts from random weights, as the config asks")
        for note in fallback.notes(build.encoder_nodes(config, source.problem.modalities)).values():
            session.note(of, note)
        run.lock()
    try:
        for note in (*source.notes, *text_only_notes(config, source)):
            session.note(of, note)
        _train_and_test(session, run, config, source, alone)
    except (KeyboardInterrupt, SystemExit) as stop:  # at Ctrl-C Lightning ends the process by the latter
        run.finish("KILLED")
        raise KeyboardInterrupt from stop
    except BaseException:
        run.finish("FAILED")
        raise
    run.finish("FINISHED")
    return read_result(run)


def _train_and_test(session: Session, run: TrackedRun, config: Config, source: FusionData, alone: Alone) -> None:
    """Run the phases that are not done yet: fit, then test with the best checkpoint."""

    def start(made: Strategy) -> None:
        if alone.states:
            made.load_unimodal(alone.states)

    task = build.task(config, source, start)
    trainer = training.trainer(config, run, source, session.say)
    if run.phase == "fit":
        _log_start(run, config, source)
        training.fit(trainer, task, source, run)
        run.set_phase("test")
    task.configure_model()
    training.load_best(task, run)
    _log_model(run, task, config, source)
    table = _log_predictions(session, run, task, config, source, trainer)
    shown = maps.write(run.folder / "maps.npz", task, source, table, session.store.anonymous)
    _log_report(session, run, table, source, alone.texts, shown)


def _log_start(run: TrackedRun, config: Config, source: FusionData) -> None:
    """Track what the run is made of, before it trains."""
    folder = run.folder / "artifacts"
    write_json(folder / "environment.json", provenance.environment())
    write_json(folder / "data.json", {"fingerprint": source.fingerprint, "counts": source.counts().to_dict("index")})
    training.write_yaml(folder / "config.yaml", config)
    for name in ("config.yaml", "environment.json", "data.json"):
        run.log_artifact(folder / name)
    run.log_params(configs.flatten(config.public()))
    run.log_dataset(config.data["name"], source.fingerprint, source.dataset.version)


def _log_model(run: TrackedRun, task: FusionTask, config: Config, source: FusionData) -> None:
    folder = run.folder / "model"
    models.save(folder, task.strategy, config, source.fitted(), task.base_checksum())
    run.log_artifact(folder, "model")
    counts = parameter_counts(task.strategy)
    run.log_metrics({f"parameters/{k}": float(v) for k, v in counts.items()})
    run.log_metrics({"cost/gflops_per_case": inference.gflops_per_case(task, source)})


def _log_predictions(
    session: Session,
    run: TrackedRun,
    task: FusionTask,
    config: Config,
    source: FusionData,
    trainer: L.Trainer,
) -> pd.DataFrame:
    """Track the predictions of the test split, and for a run that can be a stage 1 its score on the training cases."""
    if config.fusion["name"] == "unimodal":
        rows = inference.rows(trainer, task, source, "train")
        run.log_metrics({"train_final/mAP": task.score(rows)["mAP"]})
    rows = inference.rows(trainer, task, source, "test")
    table = inference.predictions(task, rows, "test")
    hashed = table.assign(**{c: table[c].map(session.store.anonymous) for c in ("case", "group")})
    inference.write_table(hashed, run.folder / "predictions.parquet")
    run.log_artifact(run.folder / "predictions.parquet")
    return table


def _log_report(
    session: Session,
    run: TrackedRun,
    table: pd.DataFrame,
    source: FusionData,
    texts: Mapping[str, Result],
    shown: Path | None,
) -> None:
    """Score the test split and track the report, with texts alone beside it and pictures of a few cases' maps."""
    folder = run.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    problem = source.problem
    method = read_method(run)
    summary = session.summarise(
        table, problem.classes, problem.multilabel, folder, text_only=texts, maps=shown, method=method
    )
    run.log_artifact(folder, "report")
    log_summary(run, summary)
    run.log_metrics({"test/cases": float(len(table)), "test/groups": float(table["group"].nunique())})
