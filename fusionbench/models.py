"""A trained model as files: what was trained, what the data taught, the config, and a checksum of the frozen base."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from fusionbench import config as configs
from fusionbench.config import Config
from fusionbench.errors import UserError
from fusionbench.files import write_json, write_tensors
from fusionbench.fusion.base import Strategy
from fusionbench.layers import sharded
from fusionbench.layers.adaptable import Adaptable
from fusionbench.layers.frozen import base_checksum, misfits, trained_shapes, trained_state
from fusionbench.types import Problem


@dataclass(frozen=True)
class ModelFiles:
    """A model folder, read but for its tensors.

    Attributes:
        folder: Where ``model.safetensors`` lies.
        config: The run's config.
        classes: Class names in label order.
        multilabel: Whether a case can have several classes.
        modalities: Names in order.
        fitted: What was learned from the training cases.
        base: Checksum of the frozen tensors.
    """

    folder: Path
    config: Config
    classes: tuple[str, ...]
    multilabel: bool
    modalities: tuple[str, ...]
    fitted: dict[str, Any]
    base: str


def save(
    folder: Path, strategy: Strategy, config: Config, fitted: dict[str, Any], base: str, write: bool = True
) -> None:
    """Write a model folder: the trained tensors, each adapter set by itself too, config and what else it needs.

    Where processes hold parts, all of them call this; what is trained comes together in the main memory of the one that
    writes, parameter by parameter.

    Args:
        folder: Where to.
        strategy: The trained strategy.
        config: The run's config.
        fitted: What was learned from the training cases.
        base: Checksum of the frozen base.
        write: Whether this process is the one that writes.
    """
    with sharded.copied((p for p in strategy.parameters() if p.requires_grad), keep=write):
        if write:
            _write(folder, strategy, config, fitted, base)


def _write(folder: Path, strategy: Strategy, config: Config, fitted: dict[str, Any], base: str) -> None:
    """Write what ``save`` says."""
    write_tensors(folder / "model.safetensors", trained_state(strategy))
    strategy.views.save_adapters(folder / "adapters")
    for name, layers in strategy.named_modules():
        for view, export in enumerate(layers.exporters if isinstance(layers, Adaptable) else ()):
            export(folder / "adapters" / f"{name}.{strategy.names[view]}")
    problem = strategy.problem
    description = {
        "config": config.public(),
        "classes": problem.classes,
        "multilabel": problem.multilabel,
        "modalities": list(problem.modalities),
        "specs": {name: asdict(spec) for name, spec in problem.modalities.items()},
        "fitted": fitted,
        "base": base,
    }
    write_json(folder / "model.json", description)


def read(folder: Path) -> ModelFiles:
    """Read a model folder's description.

    Raises:
        UserError: It is no model folder.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise UserError(
            f"'{folder}' is no model: it has no model.json; give a run's id or the folder of its 'model' artifact"
        )
    try:
        values = json.loads(path.read_text("utf-8"))
        return ModelFiles(
            folder,
            configs.from_dict(values["config"]),
            tuple(values["classes"]),
            values["multilabel"],
            tuple(values["modalities"]),
            values["fitted"],
            values["base"],
        )
    except (KeyError, TypeError, json.JSONDecodeError):
        raise UserError(f"'{path}' is damaged; fit the run again") from None


def load_into(strategy: Strategy, files: ModelFiles) -> None:
    """Load the trained tensors into a strategy built from the same config.

    Raises:
        UserError: The frozen base is not the one the model was trained on, or tensors do not fit.
    """
    if base_checksum(strategy) != files.base:
        raise UserError(
            f"the frozen base of '{files.folder}' is another one than the encoder weights found now; "
            "give the weights that it was trained on, or fit it anew if it is of an earlier version of fusionbench"
        )
    state = read_tensors(files.folder / "model.safetensors")
    if misfits(trained_shapes(strategy), state):
        raise UserError(f"the tensors in '{files.folder}' do not fit {type(strategy).__name__} for these data")
    sharded.load_state(strategy, state)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: It is not there, or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError):
        raise UserError(f"'{path}' is missing or damaged; fit the run again") from None


def check_same_problem(files: ModelFiles, problem: Problem) -> None:
    """Refuse data of other classes or modalities than the model's.

    Raises:
        UserError: Says what differs.
    """
    if tuple(problem.classes) != files.classes:
        raise UserError(
            f"the model knows the classes {', '.join(files.classes)}, the data {', '.join(problem.classes)}"
        )
    if tuple(problem.modalities) != files.modalities:
        raise UserError(f"the model takes {', '.join(files.modalities)}, the data have {', '.join(problem.modalities)}")
