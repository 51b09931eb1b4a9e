"""The whole program on one screen: config → data → strategy → Trainer → tracked run, in one or two stages.

On several devices rank 0 does all of this. For each training it calls the other processes, which take part in what the
devices share (``train_and_test.py``) and then wait for the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from fusionbench import build, preflight, provenance
from fusionbench.config import Config
from fusionbench.data.module import FusionData
from fusionbench.data.texts import unread
from fusionbench.distributed.checkpoints import check_resume
from fusionbench.encoders import fallback
from fusionbench.errors import UserError
from fusionbench.fingerprint import fingerprint
from fusionbench.fusion.base import UnimodalState
from fusionbench.results import Result, Summarise, log_summary, read_method, read_result, run_name, run_tags
from fusionbench.signals import unheard
from fusionbench.stage_one import (
    needed,
    stage_one_config,
    stage_one_configs,
    stage_one_modalities,
    text_only_configs,
    text_only_notes,
    unimodal_state,
)
from fusionbench.tracked_run import FollowedRun, Phase
from fusionbench.tracking import Store, TrackedRun
from fusionbench.train_and_test import Outcome, train_and_test
from fusionbench.world import World

Say = Callable[[str], None]
T = TypeVar("T")


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
        world: The processes of the runs.
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
    world: World = field(default_factory=World)

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


@dataclass(frozen=True)
class Call:
    """What rank 0 tells the others to take part in.

    Attributes:
        config: The run's config.
        folder: Its working folder.
        phase: How far it has come.
        states: What it starts from, by modality.
    """

    config: Config
    folder: Path
    phase: Phase
    states: Mapping[str, UnimodalState]


def fit(
    config: Config, summarise: Summarise, say: Say, resume: bool = False, world: World | None = None
) -> list[Result]:
    """Train, test and track a config; with ``init.stage1`` each modality alone first, and beside a fusion its texts.

    Of several processes, rank 0 calls this and all others ``follow``.

    Returns:
        The results, stage 1 and texts alone first, the config's own run last.
    """
    config = fallback.settled(config)
    source = _checked(config, build.data)  # before a store is made
    for note in unread(source.texts.content, source.problem.modalities):
        say(f"note: {note}")
    session = Session(Store(config.tracking), summarise, say, resume, prefixed=True, world=world or World())
    return _fit(session, config, source)


def follow(world: World) -> None:
    """Take part in what rank 0 trains, until it has no more."""
    while True:
        call: Call | None = world.broadcast()
        if call is None:
            return
        source = build.data(call.config)
        train_and_test(FollowedRun(call.folder, call.phase), call.config, source, call.states, lambda _: None, str)


def dismiss(world: World) -> None:
    """Let the other processes end."""
    world.broadcast(None)


def fit_in(session: Session, config: Config) -> list[Result]:
    """Do the same as ``fit`` in a session that other runs may share; its results grow by the config's."""
    return _fit(session, config, _checked(config, session.source))


def _checked(config: Config, read: Callable[[Config], FusionData]) -> FusionData:
    """Return a config's data once all mistakes that can be found before training have been looked for."""
    source = read(config)
    preflight.check(config, source)
    stage_one_configs(config, source)
    for own in text_only_configs(config, source).values():
        preflight.check_monitor(own.trainer.monitor, read(own))
    return source


def _fit(session: Session, config: Config, source: FusionData) -> list[Result]:
    states: dict[str, UnimodalState] = {}
    ended: dict[str, Result] = {}
    for name in stage_one_modalities(config, source):
        if name in config.init.runs:
            states[name] = unimodal_state(session.store.open(config.init.runs[name]), name)
        else:
            own, read = stage_one_config(config, name), partial(unimodal_state, modality=name)
            states[name], ended[name] = _fit_alone(session, own, name, "stage 1", read)
    texts = text_only_configs(config, source)
    for name in (name for name in texts if name not in ended):
        _, ended[name] = _fit_alone(session, texts[name], name, "text only", _leave)
    alone = Alone(states, {name: ended[name] for name in texts})
    of = config.fusion["name"] if session.prefixed and ended else ""
    session.results.append(_fit_one(session, config, source, alone, of))
    return session.results


def _leave(run: TrackedRun) -> None:
    """Leave a model where it is, since a text alone hands nothing on and may be a language model of many gigabytes."""


def _fit_alone(
    session: Session, own: Config, modality: str, why: str, read: Callable[[TrackedRun], T]
) -> tuple[T, Result]:
    """Return what is read of one modality's own run, and its end, of one that is there already or a new one."""
    source = session.source(own)
    found = session.store.find_finished(fingerprint(own, source, {}), needed(own))
    if found is not None:
        try:
            state = read(found)
        except UserError as error:
            session.say(f"note: {error}; training '{modality}' anew")
        else:
            session.say(f"{why}, {modality}: reusing run {found.run_id}")
            session.results.append(read_result(found, reused=True))
            return state, session.results[-1]
    session.say(f"{why}, {modality}: training it alone")
    session.results.append(_fit_one(session, own, source, Alone(), f"{why}, {modality}"))
    return read(session.store.open(session.results[-1].run_id)), session.results[-1]


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
        if run.phase == "fit":
            check_resume(run.folder / "checkpoints" / "last.ckpt", config.trainer)  # else it would count as failed
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
        session.world.broadcast(Call(config, run.folder, run.phase, alone.states))
        outcome = train_and_test(run, config, source, alone.states, session.say, session.store.anonymous)
        _log_report(session, run, outcome, source, alone.texts)
    except (KeyboardInterrupt, SystemExit) as stop:  # at Ctrl-C Lightning ends the process by the latter
        with unheard():
            run.finish("KILLED")
        raise KeyboardInterrupt from stop
    except BaseException:
        with unheard():
            run.finish("FAILED")
        raise
    run.finish("FINISHED")
    return read_result(run)


def _log_report(
    session: Session, run: TrackedRun, outcome: Outcome, source: FusionData, texts: Mapping[str, Result]
) -> None:
    """Score the test split and track the report, with texts alone beside it and pictures of a few cases' maps."""
    folder, table = run.folder / "report", outcome.table
    folder.mkdir(parents=True, exist_ok=True)
    problem = source.problem
    method = read_method(run)
    summary = session.summarise(
        table, problem.classes, problem.multilabel, folder, text_only=texts, maps=outcome.shown, method=method
    )
    run.log_artifact(folder, "report")
    log_summary(run, summary)
    run.log_metrics({"test/cases": float(len(table)), "test/groups": float(table["group"].nunique())})
