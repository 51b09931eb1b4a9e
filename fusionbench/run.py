"""The whole program on one screen: config → data → strategy → Trainer → tracked run, in one or two stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from safetensors.torch import load_file

from fusionbench import build, inference, models, provenance, training
from fusionbench import config as configs
from fusionbench.config import Config
from fusionbench.data.module import FusionData, choose_modalities
from fusionbench.errors import UserError, nearest
from fusionbench.files import write_json
from fusionbench.fusion.base import Strategy, UnimodalState
from fusionbench.layers.frozen import parameter_counts
from fusionbench.task import FusionTask
from fusionbench.tracking import Store, TrackedRun, flatten

Say = Callable[[str], None]


class Summary(Protocol):
    """What a report of a run's predictions holds."""

    @property
    def scores(self) -> dict[str, float]:
        """Each metric's value on the test split."""

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Each metric's 95 % interval."""


class Summarise(Protocol):
    """Turns predictions into scores and figures in a folder; ``report`` provides it, which lies above this module."""

    def __call__(
        self, predictions: pd.DataFrame, classes: Sequence[str], multilabel: bool, folder: Path, seed: int = 0
    ) -> Summary:
        """Write figures and ``metrics.json`` into ``folder`` and return the scores."""


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


@dataclass
class Session:
    """What the runs of one command share.

    Args:
        store: Where runs are kept.
        summarise: Makes a run's report.
        say: Tells the user what is going on.
        resume: Go on with runs that were cut off.
        results: Finished runs so far.
    """

    store: Store
    summarise: Summarise
    say: Say
    resume: bool = False
    results: list[Result] = field(default_factory=list)


def fit(config: Config, summarise: Summarise, say: Say, resume: bool = False) -> list[Result]:
    """Train, test and track a config; with ``init.stage1`` each modality alone first.

    Returns:
        The results, stage 1 first, the config's own run last.
    """
    offered = build.dataset(config.data).modalities
    build.check_modality_names(config, offered)
    source = build.data(config)
    _check_start(config, source)
    session = Session(Store(config.tracking), summarise, say, resume)
    states = {name: _stage_one(session, config, name) for name in _stage_one_modalities(config, source)}
    session.results.append(_fit_one(session, config, source, states))
    return session.results


def _check_start(config: Config, source: FusionData) -> None:
    """Build the strategy once, so that what only its constructor can find is found before anything trains."""
    made = build.strategy(config, source.problem)
    _check_texts(made, source)
    covered = set(source.problem.modalities) if config.init.stage1 == "unimodal" else set(config.init.runs)
    for name in config.init.runs:
        if name not in source.problem.modalities:
            raise UserError(
                f"init.runs names '{name}', no modality of the run{nearest(name, source.problem.modalities)}"
            )
    if made.needs_unimodal and not covered >= set(source.problem.modalities):
        raise UserError(
            f"fusion '{config.fusion['name']}' with these options learns from stage-1 runs which modality is best: "
            "set init.stage1=unimodal, or fusion.prior to a modality, per_sample or none"
        )


def _check_texts(made: Strategy, source: FusionData) -> None:
    """Refuse texts that an encoder has no positions for."""
    for view in made.views.address:
        name, most = view.rsplit("/", 1)[-1], getattr(made.views.encoder(view), "longest", None)
        found = max(len(ids) for ids in source.data.cells[name]) if most is not None else 0  # type: ignore[arg-type]
        if most is not None and found > most:
            raise UserError(f"a text of '{name}' has {found} tokens, its encoder takes {most}; set data.text_length")


def _stage_one_modalities(config: Config, source: FusionData) -> list[str]:
    names = list(source.problem.modalities)
    return names if config.init.stage1 == "unimodal" else [n for n in names if n in config.init.runs]


def _stage_one(session: Session, config: Config, modality: str) -> UnimodalState:
    """Return a modality's stage-1 state, from a run given by hand, one that is there already, or a new one."""
    if modality in config.init.runs:
        run = session.store.open(config.init.runs[modality])
        return _unimodal_state(run, modality)
    own = stage_one_config(config, modality)
    source = build.data(own)
    run_id = fingerprint(own, source, {})
    found = session.store.find_finished(run_id)
    if found is not None:
        session.say(f"stage 1, {modality}: reusing run {found.run_id}")
        session.results.append(_result(found, reused=True))
        return _unimodal_state(found, modality)
    session.say(f"stage 1, {modality}: training it alone")
    result = _fit_one(session, own, source, {})
    session.results.append(result)
    return _unimodal_state(session.store.open(result.run_id), modality)


def stage_one_config(config: Config, modality: str) -> Config:
    """Return the config of a modality's stage-1 run: the same, for that modality alone, with ``init.overrides``."""
    tree = config.to_dict()
    encoder = config.encoder.get("*") or {modality: config.encoder[modality]}
    tree |= {"fusion": {"name": "unimodal"}, "encoder": encoder, "init": {}}
    told = tree["data"].get("modalities")  # a csv's say what each modality is made of
    alone = {modality: told[modality]} if isinstance(told, Mapping) else [modality]
    tree["data"] = {**tree["data"], "modalities": alone}
    tree["tracking"] = {**tree["tracking"], "run_name": None}
    return configs.from_dict(configs.merge(tree, config.init.overrides))


def _unimodal_state(run: TrackedRun, modality: str) -> UnimodalState:
    """Read what a stage-1 run hands on.

    Raises:
        UserError: The run is not of this modality alone.
    """
    folder = run.artifact("model")
    files = models.read(folder)
    if files.modalities != (modality,) or files.config.fusion["name"] != "unimodal":
        raise UserError(f"run {run.run_id} is no unimodal run of '{modality}', but of {', '.join(files.modalities)}")
    state = load_file(folder / "model.safetensors")
    head = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
    adapter = folder / "adapters" / f"{modality}.safetensors"
    score = run.metrics().get("train_final/mAP", float("nan"))
    return UnimodalState(load_file(adapter) if adapter.exists() else {}, head, score)


def fingerprint(config: Config, source: FusionData, states: Mapping[str, UnimodalState]) -> str:
    """Return a hash of all that can change a run's result, and of nothing else.

    An allow-list: data content and options, encoders, tuning method, strategy, task, optimizer, schedule, seed, the
    trainer's options that enter the arithmetic, the stage-1 states, and the source of the components. Device, workers,
    paths, progress bars and tracking are not in it.
    """
    tree = config.to_dict()
    kept = {key: tree[key] for key in ("encoder", "adapt", "fusion", "task", "optimizer", "scheduler", "seed")}
    unimportant = {"root", "num_workers", "cache", "path"}
    kept["data"] = {k: v for k, v in tree["data"].items() if k not in unimportant}
    arithmetic = (
        "max_epochs",
        "patience",
        "monitor",
        "precision",
        "accumulate",
        "gradient_clip",
        "limit_train_batches",
    )
    kept["trainer"] = {k: tree["trainer"][k] for k in arithmetic}
    kept["modalities"] = list(source.problem.modalities)
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
    digest.update(source.fingerprint.encode())
    digest.update(provenance.source_digest(build.component_modules(config)).encode())
    for name in sorted(states):
        for key, value in sorted({**states[name].adapter, **states[name].head}.items()):
            digest.update(key.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def _fit_one(session: Session, config: Config, source: FusionData, states: Mapping[str, UnimodalState]) -> Result:
    """Train, test and track one run, or go on with it."""
    run_id = fingerprint(config, source, states)
    run = session.store.find_unfinished(run_id) if session.resume else None
    if run is None and session.resume:
        finished = session.store.find_finished(run_id)
        if finished is not None:
            session.say(f"run {finished.run_id} has ended already")
            return _result(finished, reused=True)
    if run is not None:
        run.lock()
        run.resume()
        session.say(f"going on with run {run.run_id}")
    else:
        run = session.store.start(_run_name(config), run_id, {**provenance.git(), **_tags(config, source)})
        for name in build.random_encoders(config, source.problem.modalities):
            session.say(f"note: the encoder of '{name}' starts from random weights, as the config asks")
        run.lock()
    try:
        _train_and_test(session, run, config, source, states)
    except (KeyboardInterrupt, SystemExit) as stop:  # at Ctrl-C Lightning ends the process by the latter
        run.finish("KILLED")
        raise KeyboardInterrupt from stop
    except BaseException:
        run.finish("FAILED")
        raise
    run.finish("FINISHED")
    return _result(run)


def _train_and_test(
    session: Session, run: TrackedRun, config: Config, source: FusionData, states: Mapping[str, UnimodalState]
) -> None:
    """Run the phases that are not done yet: fit, then test with the best checkpoint."""
    for note in source.notes:
        session.say(f"note: {note}")

    def start(made: Strategy) -> None:
        if states:
            made.load_unimodal(states)

    task = build.task(config, source, start)
    trainer = training.trainer(config, run)
    if run.phase == "fit":
        _log_start(run, config, source)
        training.fit(trainer, task, source, run)
        run.set_phase("test")
    task.configure_model()
    training.load_best(task, run)
    _log_model(run, task, config, source)
    _log_test(session, run, task, config, source, trainer)


def _log_start(run: TrackedRun, config: Config, source: FusionData) -> None:
    """Track what the run is made of, before it trains."""
    folder = run.folder / "artifacts"
    write_json(folder / "environment.json", provenance.environment())
    write_json(folder / "data.json", {"fingerprint": source.fingerprint, "counts": source.counts().to_dict("index")})
    training.write_yaml(folder / "config.yaml", config)
    for name in ("config.yaml", "environment.json", "data.json"):
        run.log_artifact(folder / name)
    run.log_params(flatten(config.to_dict()))
    run.log_dataset(config.data["name"], source.fingerprint, source.dataset.version)


def _log_model(run: TrackedRun, task: FusionTask, config: Config, source: FusionData) -> None:
    folder = run.folder / "model"
    models.save(folder, task.strategy, config, source.fitted())
    run.log_artifact(folder, "model")
    counts = parameter_counts(task.strategy)
    run.log_metrics({f"parameters/{k}": float(v) for k, v in counts.items()})


def _log_test(
    session: Session,
    run: TrackedRun,
    task: FusionTask,
    config: Config,
    source: FusionData,
    trainer: Any,  # noqa: ANN401
) -> None:
    """Score the test split, and for a run that can be a stage 1 the training cases, and track the report."""
    if config.fusion["name"] == "unimodal":
        rows = inference.rows(trainer, task, source, "train")
        run.log_metrics({"train_final/mAP": task.score(rows)["mAP"]})
    rows = inference.rows(trainer, task, source, "test")
    table = inference.predictions(task, rows, "test", session.store.anonymous)
    folder = run.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    inference.write_table(table, run.folder / "predictions.parquet")
    run.log_artifact(run.folder / "predictions.parquet")
    summary = session.summarise(table, source.problem.classes, source.problem.multilabel, folder)
    run.log_artifact(folder, "report")
    run.log_metrics({f"test/{k}": v for k, v in summary.scores.items()})
    for name, (low, high) in summary.intervals.items():
        run.log_metrics({f"test_interval/{name}/low": low, f"test_interval/{name}/high": high})
    run.log_metrics({"test/cases": float(len(table)), "test/groups": float(table["group"].nunique())})


def _tags(config: Config, source: FusionData) -> dict[str, str]:
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
        "fusionbench.random_weights": ", ".join(build.random_encoders(config, source.problem.modalities)) or "none",
    }


def _run_name(config: Config) -> str:
    chosen = list(config.data.get("modalities") or [])
    fusion = chosen[0] if config.fusion["name"] == "unimodal" and len(chosen) == 1 else config.fusion["name"]
    return config.tracking.run_name or f"{fusion}-{config.adapt['name']}-{config.data['name']}-s{config.seed}"


def _result(run: TrackedRun, reused: bool = False) -> Result:
    """Read a finished run's result back from the store."""
    values, tags = run.metrics(), run.tags()
    prefix = "test_interval/"
    names = {k.removeprefix(prefix).rpartition("/")[0] for k in values if k.startswith(prefix)}
    alone = tags["fusionbench.fusion"] == "unimodal"
    return Result(
        run.name,
        run.run_id,
        f"{tags['fusionbench.modalities']} alone" if alone else tags["fusionbench.fusion"],
        {k.removeprefix("test/"): v for k, v in values.items() if k.startswith("test/")},
        {n: (values[f"{prefix}{n}/low"], values[f"{prefix}{n}/high"]) for n in names},
        int(values["parameters/trainable"]),
        int(values["test/cases"]),
        int(values["test/groups"]),
        reused,
    )


def chosen_modalities(config: Config) -> list[str]:
    """Return the modalities that a config uses, in order."""
    return list(choose_modalities(build.dataset(config.data), config.data.get("modalities")))
