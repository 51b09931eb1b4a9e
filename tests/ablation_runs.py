"""Runs of an ablation table in a real store, with predictions that are made up."""

import dataclasses

import numpy as np
import pandas as pd

from fusionbench.report.ablation import AblationTable, Cell
from fusionbench.report.weighted import weighted_scores

CLASSES = ("dry", "wet", "other")
STRENGTH = {"oct alone": 0.2, "cfp alone": 0.4, "concat": 1.0, "EI": 2.2}
TABLE = AblationTable(
    name="demo",
    title="A & B: 100 % of _it_",
    rows=tuple(STRENGTH),
    columns=("MMC",),
    seeds=(0, 1),
    metric="mAP",
    metrics=("mAP", "mAUC"),
    margin=0.02,
    cells=(),
    published={"EI": {"MMC": {"mAP": 0.889}, "mean": {"mAP": 0.824}, "parameters": 8.87e6}},
    means={},
    own_unimodals={(row, "MMC"): ("oct alone", "cfp alone") for row in ("concat", "EI")},
    own_concat={("EI", "MMC"): "concat"},
    notes=("A note of the table's own.",),
)


def predictions(strength, draw, cases=60, multilabel=False):
    """Return predictions of two cases a group, the better the greater ``strength`` is; ids are the store's affair."""
    generator = np.random.default_rng(draw)
    target = np.arange(cases) % len(CLASSES)
    truth = np.eye(len(CLASSES), dtype=int)[target]
    logits = generator.normal(size=truth.shape) + strength * truth
    scores = 1 / (1 + np.exp(-logits)) if multilabel else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    told = {f"target.{c}": truth[:, k] for k, c in enumerate(CLASSES)} if multilabel else {"target": target}
    columns = {f"prob.{name}": scores[:, k] for k, name in enumerate(CLASSES)}
    return pd.DataFrame(
        {
            "case": [f"c{n}" for n in range(cases)],
            "group": [f"g{n // 2}" for n in range(cases)],
            "split": "test",
            **told,
            **columns,
        }
    )


def track(place, name, table, tags=(), drop=()):
    """Put a finished run with these predictions into the store; return its id."""
    multilabel = "target" not in table
    target = table[[f"target.{c}" for c in CLASSES]].to_numpy() if multilabel else table["target"].to_numpy()
    scores = table[[f"prob.{c}" for c in CLASSES]].to_numpy()
    found = weighted_scores(scores, target, np.ones((1, len(scores))))
    found |= {name.removeprefix("score."): [table[name].mean()] for name in table if name.startswith("score.")}
    given = {"fusionbench.random_weights": "none", "fusionbench.data_fingerprint": "d" * 40, **dict(tags)}
    run = place.start(name, name, given)
    run.folder.mkdir(parents=True, exist_ok=True)
    hashed = table.assign(**{c: table[c].map(place.anonymous) for c in ("case", "group")})
    hashed.to_parquet(run.folder / "predictions.parquet")
    run.log_metrics({f"test/{name}": float(value) for name, (value,) in found.items() if name not in drop})
    run.log_metrics({"parameters/trainable": 7_099_026.0, "parameters/total": 93_000_000.0})
    run.log_metrics({"cost/gflops_per_case": 36.25, "cost/peak_memory_GB": 1.5})
    for epoch, seconds in enumerate((9.0, 2.0, 3.0)):
        run.log_metrics({"cost/epoch_seconds": seconds}, epoch)
    run.finish("FINISHED")
    return run.run_id


def filled(place, table=TABLE, multilabel=False, strength=STRENGTH, **change):
    """Return the table with a tracked run in every cell."""
    cells = [
        Cell(row, column, seed, "finished", "", run_id, f"f{r}{c}{seed}" * 8)
        for c, column in enumerate(table.columns)
        for r, row in enumerate(table.rows)
        for seed in table.seeds
        for run_id in [
            track(place, f"{row} {seed}", predictions(strength[row], [seed, r, c], multilabel=multilabel), **change)
        ]
    ]
    return dataclasses.replace(table, cells=tuple(cells))


def hole(table, row, seed, reason, column="MMC"):
    """Return the table with one cell's run failed."""
    where = (row, column, seed)
    return dataclasses.replace(
        table,
        cells=tuple(
            dataclasses.replace(cell, status="failed", reason=reason, run_id="")
            if (cell.row, cell.column, cell.seed) == where
            else cell
            for cell in table.cells
        ),
    )


def first_seed(table):
    """Return the table with its first seed alone."""
    seed = table.seeds[0]
    return dataclasses.replace(table, seeds=(seed,), cells=tuple(c for c in table.cells if c.seed == seed))
