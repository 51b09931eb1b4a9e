"""What the runs of an ablation table cost, and where each number comes from.

Clocks, memory and run ids differ from machine to machine and stay out of the other files, which are equal for equal
results.
"""

from __future__ import annotations

import math

import pandas as pd

from fusionbench.report.ablation_format import figure, fraction, markdown, parameters
from fusionbench.report.ablation_results import Results, Run
from fusionbench.report.ablation_scores import cost
from fusionbench.report.ablation_table import AblationTable
from fusionbench.report.tables import HOLE, heading


def costs(table: AblationTable, results: Results) -> pd.DataFrame:
    """Return one line for each finished run: its scores, what it cost, its MLflow id; unknown is nan."""
    names = ["row", "column", "seed", *table.shown, "trainable", "total", "gflops"]
    names += ["epoch_seconds", "peak_memory_GB", "minutes", "features", "fingerprint", "run_id"]
    lines = [_line(table, run) for runs in results.runs.values() for run in runs]
    return pd.DataFrame.from_records(lines, columns=names)


def costs_markdown(table: AblationTable, frame: pd.DataFrame) -> str:
    """Return the same by row and column, means over seeds, with the ids of the runs."""
    lines = [_mean_line(table, runs) for _, runs in frame.groupby(["row", "column"], sort=False)]
    body = markdown(pd.DataFrame(lines), names=2) if lines else "No run has a result."
    return f"# {table.title}: costs\n\n{body}\n\n{_LEGEND}\n"


_LEGEND = (
    "GFLOPs: one forward pass of one test case, a multiply-add counted as 2. Seconds an epoch: the median over epochs, "
    "training alone; *stored* features were computed before and are read. Peak memory: in 1e9 bytes, of the GPU where "
    "there is one, else of the process. Minutes: by the wall clock from a run's start to its end, breaks before a "
    "resumption included. All but GFLOPs and parameters depend on the machine and on what else it did."
)


def _line(table: AblationTable, run: Run) -> dict[str, object]:
    return {
        "row": run.cell.row,
        "column": run.cell.column,
        "seed": run.cell.seed,
        **{metric: run.metrics.get(f"test/{metric}", math.nan) for metric in table.shown},
        **{name: cost([run], name) for name in ("trainable", "total", "gflops")},
        "epoch_seconds": run.epoch_seconds,
        "peak_memory_GB": run.metrics.get("cost/peak_memory_GB", math.nan),
        "minutes": run.minutes,
        "features": run.tags.get("fusionbench.features", ""),
        "fingerprint": run.cell.fingerprint,
        "run_id": run.run_id,
    }


def _mean_line(table: AblationTable, runs: pd.DataFrame) -> dict[str, str]:
    return {
        "method": runs["row"].iloc[0],
        "column": runs["column"].iloc[0],
        **{heading(metric): fraction(runs[metric].mean()) for metric in table.shown},
        "trainable": parameters(runs["trainable"].mean()),
        "total": parameters(runs["total"].mean()),
        "GFLOPs a case": figure(runs["gflops"].mean()),
        "seconds an epoch": figure(runs["epoch_seconds"].mean()),
        "peak memory (GB)": figure(runs["peak_memory_GB"].max()),
        "minutes": figure(runs["minutes"].mean()),
        "features": ", ".join(dict.fromkeys(runs["features"])) or HOLE,
        "runs, by seed": " ".join(f"`{name[:8]}`" for name in runs["run_id"]),
    }
