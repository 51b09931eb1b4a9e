"""From tracked runs, or from a table of them, to the methods that are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import yaml

from fusionbench.config import flatten
from fusionbench.errors import UserError, nearest
from fusionbench.report.fusion_help import Entry, held_against
from fusionbench.report.methods import Method
from fusionbench.tracking import Store, TrackedRun

METRIC, MARGIN = "mAP", 0.02  # of what states none
_NOT_THE_METHOD = ("seed", "tracking")


@dataclass(frozen=True)
class Contest:
    """Methods to be compared with each other.

    Attributes:
        title: What the comparison is called; a table's column, or empty.
        methods: At least one.
        entries: The strategies that can be held against their modalities alone; empty where none can.
        notes: What the reader must know of the runs, one sentence each.
        metric: The headline metric, a table's own.
        margin: Differences below do not matter.
    """

    title: str
    methods: tuple[Method, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    metric: str = METRIC
    margin: float = MARGIN


def labels(predictions: pd.DataFrame) -> tuple[tuple[str, ...], bool]:
    """Return the classes in label order, and whether a case can have several."""
    classes = tuple(name.removeprefix("prob.") for name in predictions.columns if name.startswith("prob."))
    return classes, "target" not in predictions.columns


def from_runs(store: Store, names: Sequence[str]) -> Contest:
    """Return runs as methods; those whose configs differ only by seed or tracking are one.

    Args:
        store: Where they are kept.
        names: Ids, beginnings of ids, or names.

    Raises:
        UserError: A run is not there or has no predictions, or two have one config and seed.
    """
    opened = [store.open(name) for name in names]
    configs = [yaml.safe_load(run.artifact("config.yaml").read_text("utf-8")) for run in opened]
    groups: dict[str, list[tuple[int, TrackedRun, dict[str, Any]]]] = {}
    for run, tree in zip(opened, configs, strict=True):
        own = {key: value for key, value in tree.items() if key not in _NOT_THE_METHOD}
        groups.setdefault(yaml.safe_dump(own, sort_keys=True), []).append((int(tree.get("seed", 0)), run, own))
    for members in groups.values():
        _check_seeds(members)
    named = _names([(members[0][1], members[0][2]) for members in groups.values()])
    return _contest("", {n: [(s, r) for s, r, _ in m] for n, m in zip(named, groups.values(), strict=True)})


def from_table(store: Store, name: str) -> list[Contest]:
    """Return each column of the newest table of this name.

    Raises:
        UserError: There is no such table, or no run of it has ended well.
    """
    table = _newest(store, name)
    path = TrackedRun(store, table.info.run_id).artifact("runs.csv")
    records = pd.read_csv(path, dtype=str, keep_default_na=False)
    metric = table.data.tags.get("fusionbench.metric", METRIC)
    margin = float(table.data.tags.get("fusionbench.margin", MARGIN))
    contests = []
    for column in records["column"].unique():
        own = records[records["column"] == column]
        done = own[own["status"] == "finished"]
        runs: dict[str, list[tuple[int, TrackedRun]]] = {}
        for row, seed, run_id in zip(done["row"], done["seed"], done["run_id"], strict=True):
            runs.setdefault(row, []).append((int(seed), TrackedRun(store, run_id)))
        notes = _hole_notes(own[own["status"] != "finished"])
        if runs:
            contest = replace(_contest(column, runs, notes), metric=metric, margin=margin)
            contests.append(_with_own(contest, own))
    if not contests:
        raise UserError(f"no run of table '{name}' has ended well; run 'fusionbench ablate' again")
    return contests


def _hole_notes(holes: pd.DataFrame) -> list[str]:
    """Return why runs are left out, those that were not wanted in one sentence a reason."""
    missing = holes[holes["status"] == "missing"]
    counts = Counter(map(str, missing["reason"]))
    notes = [f"{n} run{' is' if n == 1 else 's are'} left out: {reason or 'missing'}." for reason, n in counts.items()]
    others = holes.drop(missing.index)[["row", "seed", "reason", "status"]].astype(str).to_dict("records")
    return notes + [f"{r['row']} (seed {r['seed']}) is left out: {r['reason'] or r['status']}." for r in others]


def _with_own(contest: Contest, records: pd.DataFrame) -> Contest:
    """Hold each strategy against its own baselines, which the table's records name unless they are of an old version.

    Only so is a strategy that is tuned otherwise held against modalities and a concatenation that are tuned as it is.
    """
    if not {"unimodals", "concat"} <= set(records.columns):
        return contest
    rows = records["row"]
    unimodals = {row: names.split("|") for row, names in zip(rows, records["unimodals"], strict=True) if names}
    if not unimodals:
        return replace(contest, entries=())
    concat = {row: name for row, name in zip(rows, records["concat"], strict=True) if name}
    entries, unanswered = held_against(unimodals, concat, [method.name for method in contest.methods])
    notes = (*contest.notes, *([f"Did fusion help? {unanswered}"] if unanswered else []))
    return replace(contest, entries=tuple(entries), notes=notes)


def _newest(store: Store, name: str) -> Any:  # noqa: ANN401 - an MLflow run
    """Return the newest table of this name."""
    by_name: dict[str, Any] = {}
    for table in store.search_all("tags.`fusionbench.level` = 'table'"):
        by_name.setdefault(table.data.tags.get("fusionbench.table", ""), table)
    if name not in by_name:
        raise UserError(f"there is no table '{name}' in '{store.uri}'{nearest(name, by_name)}")
    return by_name[name]


def _contest(title: str, runs: Mapping[str, Sequence[tuple[int, TrackedRun]]], notes: Sequence[str] = ()) -> Contest:
    """Read the predictions, and what the runs' tags say."""
    methods = [
        Method(name, tuple(pd.read_parquet(run.artifact("predictions.parquet")) for _, run in own), _seeds(own))
        for name, own in runs.items()
    ]
    tags = {name: own[0][1].tags() for name, own in runs.items()}
    fusion = {name: found.get("fusionbench.fusion", "") for name, found in tags.items()}
    modalities = {name: found.get("fusionbench.modalities", "") for name, found in tags.items()}
    told = (*notes, *(note for name, found in tags.items() for note in _tag_notes(name, found)))
    return Contest(title, tuple(methods), _entries(fusion, modalities), told)


def _entries(fusion: Mapping[str, str], modalities: Mapping[str, str]) -> tuple[Entry, ...]:
    """Hold every strategy against all that is one modality alone, and against concatenation if one method is that."""
    alone = tuple(name for name, kind in fusion.items() if kind == "unimodal")
    plain = [name for name, kind in fusion.items() if kind == "concat"]
    concat = plain[0] if len(plain) == 1 else None
    strategies = [name for name in fusion if name not in alone] if alone else []
    given = set(modalities[name] for name in alone)
    return tuple(
        Entry(name, alone, None if name == concat else concat, set(modalities[name].split(", ")) <= given)
        for name in strategies
    )


def _seeds(own: Sequence[tuple[int, TrackedRun]]) -> tuple[int, ...]:
    return tuple(seed for seed, _ in own)


def _tag_notes(name: str, tags: Mapping[str, str]) -> list[str]:
    notes = []
    random, allowed = tags.get("fusionbench.random_weights", "none"), tags.get("fusionbench.allow", "")
    if random not in ("none", ""):
        notes.append(f"{name} started from random weights ({random}).")
    if allowed not in ("none", ""):
        notes.append(f"{name} was run although the data have findings that were let through ({allowed}).")
    return notes


def _check_seeds(members: Sequence[tuple[int, TrackedRun, Mapping[str, Any]]]) -> None:
    seen: dict[int, str] = {}
    for seed, run, _ in members:
        if seed in seen:
            raise UserError(
                f"runs {seen[seed]} and {run.run_id} have the same config and seed {seed}; give one of them"
            )
        seen[seed] = run.run_id


def _names(members: Sequence[tuple[TrackedRun, Mapping[str, Any]]]) -> list[str]:
    """Name methods by their strategy and, where that is not enough, by the options in which they differ."""
    tags = [run.tags() for run, _ in members]
    plain = [_plain_name(found) for found in tags]
    trees = [flatten(own) for _, own in members]
    names = []
    for i, name in enumerate(plain):
        rivals = [tree for j, tree in enumerate(trees) if plain[j] == name]
        keys = [key for key in trees[i] if any(tree.get(key) != trees[i][key] for tree in rivals)]
        options = ", ".join(f"{key}={trees[i][key]}" for key in keys[:3])
        names.append(f"{name} ({options})" if options else name)
    return [n if names.count(n) == 1 else f"{n} {run.run_id[:8]}" for n, (run, _) in zip(names, members, strict=True)]


def _plain_name(tags: Mapping[str, str]) -> str:
    fusion = tags.get("fusionbench.fusion", "run")
    return f"{tags.get('fusionbench.modalities')} alone" if fusion == "unimodal" else fusion
