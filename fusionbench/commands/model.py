"""A trained model, found and built again for ``test`` and ``predict``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from lightning.pytorch.callbacks import RichProgressBar

from fusionbench import build, config, inference, models
from fusionbench.config import Config, Node
from fusionbench.data.cells import read_table
from fusionbench.data.module import FusionData
from fusionbench.errors import UserError
from fusionbench.layers.frozen import parameter_counts
from fusionbench.models import ModelFiles
from fusionbench.sections import InitOptions, TrackingOptions
from fusionbench.task import FusionTask
from fusionbench.tracking import Store, TrackedRun, store_uri
from fusionbench.types import Split


@dataclass(frozen=True)
class Model:
    """A trained strategy with data to run it on.

    Attributes:
        name: What the user called it.
        task: The strategy.
        source: The cases.
        config: The run's config, with these data.
        run: The tracked run that it was found by; None: its folder was given.
    """

    name: str
    task: FusionTask
    source: FusionData
    config: Config
    run: TrackedRun | None = None

    @property
    def trainable(self) -> int:
        """Number of parameters that were trained."""
        return parameter_counts(self.task.strategy)["trainable"]

    def predict(self, split: Split | None) -> pd.DataFrame:
        """Return the table of predictions of a split, or of all cases.

        Raises:
            UserError: The split is empty.
        """
        if split is not None and not (self.source.table["split"] == split).any():
            raise UserError(f"the data have no case of split '{split}'")
        trainer = L.Trainer(
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            devices=1,
            accelerator=self.config.trainer.accelerator,
            precision=self.config.trainer.precision,
            callbacks=[RichProgressBar(console_kwargs={"stderr": True})],
        )
        rows = inference.rows(trainer, self.task, self.source, split)
        table = inference.predictions(self.task, rows, split or "all")
        if split is None:
            splits = dict(zip(self.source.data.case_id, self.source.table["split"], strict=True))
            table["split"] = table["case"].map(splits)
        return table

    def unpredicted(self, split: Split | None) -> pd.DataFrame:
        """Return the cases that have none of the model's modalities, which cannot be predicted."""
        left = self.source.left_out
        chosen = left if split is None else left[left["split"] == split]
        return chosen.rename(columns={"case_id": "case", "group_id": "group"})[["case", "group", "split"]]


def load(options: argparse.Namespace) -> Model:
    """Build the model that the command line names, on the data that it names.

    Raises:
        UserError: There is no such model, or it does not go with the data.
    """
    _check_overrides(options.overrides)
    found = find(options)
    run = found if isinstance(found, TrackedRun) else None
    files = models.read(found.artifact("model") if isinstance(found, TrackedRun) else found)
    checked = _config(files, options)
    from fusionbench.training import quiet

    quiet()
    source = build.data(checked, files.fitted)
    models.check_same_problem(files, source.problem)
    task = build.task(checked, source)
    task.configure_model()
    models.load_into(task.strategy, files)
    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
    return Model(options.model, task, source, checked, run)


def find(options: argparse.Namespace) -> Path | TrackedRun:
    """Return the model's folder, or the run that the command line names.

    Raises:
        UserError: There is neither.
    """
    return _folder(options) or _run(options)


def _check_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides of where runs are tracked, which only fit reads."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key.split(".")[0] == "tracking":
            place = value if key == "tracking.folder" else "DIR"
            raise UserError(
                f"'{override}' has no effect here, since nothing is tracked; say where the run is kept by "
                f"--folder {place}, or $MLFLOW_TRACKING_URI"
            )


def _folder(options: argparse.Namespace) -> Path | None:
    """Return the folder that the argument is; None: it names a run."""
    path = Path(options.model)
    if path.is_dir():
        return path
    return path.parent if path.is_file() and (path.parent / "model.json").is_file() else None


def _run(options: argparse.Namespace) -> TrackedRun:
    """Return the run that the argument names."""
    defaults = TrackingOptions()
    tracking = TrackingOptions(folder=options.folder or defaults.folder)
    if store_uri(tracking).startswith("sqlite:") and not (Path(tracking.folder) / "mlflow.db").is_file():
        raise UserError(
            f"there is no model '{options.model}' and no run in '{tracking.folder}': give a run's id or name, a folder "
            "with model.json, or the runs' place with --folder"
        )
    return Store(tracking).open(options.model)


def _config(files: ModelFiles, options: argparse.Namespace) -> Config:
    """Return the run's config with other data, if other data are asked for."""
    tree = files.config.to_dict()
    if getattr(options, "csv", None):
        tree["data"] = _csv_node(files, Path(options.csv))
    tree = config.merge(tree, config.parse_overrides(options.overrides))
    return dataclasses.replace(config.from_dict(tree), init=InitOptions())


def _csv_node(files: ModelFiles, path: Path) -> Node:
    """Return a data node for a csv of cases without labels.

    Its columns are those of the training csv, or, for a model of another dataset, named as the modalities. Masks are
    read where the csv has their columns; a prediction needs none.
    """
    trained = files.config.data
    kept = {k: v for k, v in trained.items() if k in config.data_options() and k not in ("root", "modalities", "masks")}
    labels = {"targets": list(files.classes)} if files.multilabel else {"classes": list(files.classes)}
    unread = {"label": "(not read)", "fractions": [0.0, 0.0, 1.0]}
    if trained["name"] == "csv":
        return _masks_there({**trained, "root": None, "path": str(path), **labels, **unread}, path)
    specs: dict[str, Any] = json.loads((files.folder / "model.json").read_text("utf-8"))["specs"]
    nodes = {name: _modality_node(files, name, specs[name]) for name in files.modalities}
    sizes = {s["size"] for s in specs.values() if s["kind"] in ("image", "slices")}
    size = {"size": sizes.pop()} if sizes else {}
    return {"name": "csv", "path": str(path), "modalities": nodes, **labels, **unread, **size, **kept}


def _masks_there(node: Node, path: Path) -> Node:
    """Return a csv's data node without the masks whose columns the csv does not have."""
    columns = set(read_table(path)) if path.is_file() else set()
    nodes, kept = {}, set[str]()
    for name, own in node["modalities"].items():
        masks = {mask: column for mask, column in own.get("masks", {}).items() if column in columns}
        kept |= set(masks)
        nodes[name] = {**own, "masks": masks} if masks else {k: v for k, v in own.items() if k != "masks"}
    return {**node, "modalities": nodes, "masks": [mask for mask in node.get("masks") or () if mask in kept]}


def _modality_node(files: ModelFiles, name: str, spec: dict[str, Any]) -> Node:
    if spec["kind"] == "table":
        return {"kind": "table", "columns": [column["name"] for column in files.fitted["tables"][name]]}
    if spec["kind"] == "text":
        return {"kind": "text", "column": name}
    return {"kind": spec["kind"], "column": name, "instances": spec["instances"]}
