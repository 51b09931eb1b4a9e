"""Predictions of a trained strategy, one row a case."""

from __future__ import annotations

import io
from pathlib import Path

import lightning as L
import pandas as pd
import torch

from fusionbench.data.cases import Cases, collate
from fusionbench.data.module import FusionData
from fusionbench.errors import UserError
from fusionbench.files import write_bytes
from fusionbench.fusion.answers import unwritten
from fusionbench.layers.flops import count_flops
from fusionbench.task import FusionTask, Rows
from fusionbench.types import Batch, Output, Split

ANSWER_COLUMNS = ("answer", "answer_named", "answer_text")


def rows(trainer: L.Trainer, task: FusionTask, source: FusionData, split: Split | None) -> Rows:
    """Run the strategy over a split, or over all cases, and return each case's outputs once, sorted by case id."""
    source.predict_split = split
    trainer.predict(task, datamodule=source, return_predictions=False)
    return task.gathered()


def gflops_per_case(task: FusionTask, source: FusionData) -> float:
    """Return what a forward pass of one case costs in 1e9 floating point operations, a multiply-accumulate being 2.

    The case is the first of the test split that has every modality, else its first; everything is computed, frozen
    features too, whether or not they are stored. It runs where the network is, in evaluation mode. What a language
    model writes (``decode: generate``) is left out, since its length is the case's; its scores are in.
    """
    cases = source.eval_dataloader("test").dataset
    assert isinstance(cases, Cases)
    present = source.data.present[cases.rows].sum(axis=1)
    case = collate(source.data.pad_id)([cases[int(present.argmax()), 0]])
    with unwritten(task.strategy):
        return count_flops(lambda: run_case(task, case)) / 1e9


def run_case(task: FusionTask, case: Batch) -> Output:
    """Return what the strategy makes of a batch where the network is, in evaluation mode, with nothing stored read."""
    like = next(p for p in task.strategy.parameters() if p.requires_grad)  # a frozen base may be of another type
    inputs = {n: x.to(like.device, like.dtype if x.is_floating_point() else x.dtype) for n, x in case.inputs.items()}
    training = task.strategy.training
    task.strategy.eval()
    with torch.no_grad(), task.strategy.views.live():
        output: Output = task(case._replace(inputs=inputs, present=case.present.to(like.device)))
    task.strategy.train(training)
    return output


def predictions(task: FusionTask, values: Rows, split: str) -> pd.DataFrame:
    """Return the table that reports read: ids, target, probabilities of the fused output and of every branch.

    Further scores of the strategy are ``score.<name>``. An answer in words is ``answer_text``, the classes that it
    names ``answer_named``, the index of the one ``answer``, -1 where these are none or several.

    Args:
        task: Knows classes and modalities.
        values: What ``rows`` returned.
        split: Goes into the column of that name.
    """
    problem = task.problem
    table = pd.DataFrame({"case": values["case"], "group": values["group"]})
    table["split"] = split
    if problem.multilabel:
        for k, label in enumerate(problem.classes):
            table[f"target.{label}"] = [int(t[k]) for t in values["target"]]
    else:
        table["target"] = values["target"]
    outputs = {"prob": values["logits"]} | {k: v for k, v in values.items() if k.startswith("branch.")}
    for prefix, logits in outputs.items():
        scores = task.probabilities(torch.tensor(logits, dtype=torch.float64)).numpy()
        for k, label in enumerate(problem.classes):
            table[f"{prefix}.{label}"] = scores[:, k]
    for m, modality in enumerate(problem.modalities):
        table[f"present.{modality}"] = [row[m] for row in values["present"]]
        if "weights" in values:
            table[f"weight.{modality}"] = [row[m] for row in values["weights"]]
    further = [name for name in values if name in ANSWER_COLUMNS or name.startswith("score.")]
    return table.assign(**{name: values[name] for name in further})


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as .parquet or .csv, by its name, whole or not at all.

    Raises:
        UserError: Another ending.
    """
    if path.suffix == ".parquet":
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        write_bytes(path, buffer.getvalue())
    elif path.suffix == ".csv":
        write_bytes(path, table.to_csv(index=False).encode())
    else:
        raise UserError(f"'{path.name}' must end in .csv or .parquet")
