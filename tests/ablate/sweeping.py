"""What the tests of sweeps share: a csv with two tables, which trains in a moment, and ``ablate`` on it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
from layouts import make_csv
from program import TABLE, Done, command, new_store, runs, store, write_config

from fusionbench.ablate import execute
from fusionbench.report import run_report

MODALITIES = {"age": {"kind": "table", "columns": ["age"]}, "sex": {"kind": "table", "columns": ["sex"]}}
EI = {"fusion": {"name": "early_intervention", "hidden": 8}, "init": {"stage1": "unimodal"}}
COLUMNS = {"eights": {}, "fours": {"data": {"batch_size": 4}}}
ROWS = {"mean": {"fusion": {"name": "mean"}}, "EI": EI}


def write_base(folder: Path) -> Path:
    """Write a csv and ``base.yaml``: concat over two tables, one epoch."""
    path = make_csv(folder, patients=16)
    tree = {
        "data": {"name": "csv", "path": str(path), "modalities": MODALITIES},
        "encoder": TABLE,
        "fusion": {"name": "concat"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "trainer": {"max_epochs": 1, "patience": 0},
    }
    return write_config(folder / "base.yaml", tree)


def write_table(folder: Path, name: str = "two", **changes: object) -> Path:
    """Write a table of two rows over ``base.yaml``, one seed, no baselines; ``changes`` are its keys."""
    tree: dict[str, object] = {"title": "Two rows", "base": "base.yaml", "seeds": [0], "baselines": []}
    tree["rows"] = {"mean": {"fusion": {"name": "mean"}}, "concat": {}}
    return write_config(folder / f"{name}.yaml", {k: v for k, v in {**tree, **changes}.items() if v is not None})


def ablate(table: Path, place: Path, *options: object, results: Path | None = None) -> Done:
    """Run a table into a store in this process, its workers forked, so that nothing is imported again."""
    if not (place / "mlflow.db").exists():
        new_store(place)
    with forked():
        where = ("--results", results or place / "results")
        return command("ablate", "--config", table, f"tracking.folder={place}", *where, *options, **ENVIRONMENT)


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "FUSIONBENCH_ID_KEY": "the same for all"}


@contextlib.contextmanager
def forked() -> Iterator[None]:
    """Let workers be forks of this process, and runs draw no figures, which takes most of their time."""
    with mock.patch.object(execute, "START", "fork"), mock.patch.object(run_report, "draw", return_value=[]):
        yield


def in_child(act: Callable[[], int]) -> int:
    """Do something in a process of its own; return its exit status, negative for a signal."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(act())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def once(flag: Path, owner: type, name: str, call: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something at the n-th call of a method in whatever process makes it, and in no other after that."""
    real, calls = getattr(owner, name), []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == call and not flag.exists():
            flag.touch()
            act()
        return real(*arguments, **options)

    with mock.patch.object(owner, name, counted):
        yield


def results(folder: Path, but: tuple[str, ...] = (".costs.md", ".costs.csv", ".runs.csv")) -> Mapping[str, bytes]:
    """Return the content of the results that hold neither run ids nor what a clock measured."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.endswith(but)}


def cells(place: Path, name: str) -> pd.DataFrame:
    """Return the list of a table's runs."""
    return pd.read_csv(place / "results" / f"{name}.runs.csv", keep_default_na=False)


def levels(place: Path) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Return the names of a store's runs by level, and the whole runs by id."""
    found = runs(store(place))
    names: dict[str, list[str]] = {}
    for run in found:
        names.setdefault(run.data.tags["fusionbench.level"], []).append(run.info.run_name)
    return {level: sorted(own) for level, own in names.items()}, {run.info.run_id: run for run in found}
