"""One modality alone beside a fusion: the stage-1 runs that it starts from, and the texts that it is held against.

Both are the same run, the config on that modality alone, so that each is trained once for all that need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from fusionbench import config as configs
from fusionbench import models
from fusionbench.adapt.views import trained_base
from fusionbench.config import Config
from fusionbench.data.module import FusionData
from fusionbench.data.splits import SPLITS
from fusionbench.data.validate import lone_classes
from fusionbench.errors import UserError
from fusionbench.fusion.base import UnimodalState
from fusionbench.metrics import HEADLINE
from fusionbench.tracking import TrackedRun
from fusionbench.types import ModalitySpec


def stage_one_modalities(config: Config, source: FusionData) -> list[str]:
    """Return the modalities that start from a stage-1 run, trained or given by hand."""
    names = list(source.problem.modalities)
    return names if config.init.stage1 == "unimodal" else [n for n in names if n in config.init.runs]


def stage_one_configs(config: Config, source: FusionData) -> dict[str, Config]:
    """Return the config of each stage-1 run that a config asks for, those given by hand left out.

    Raises:
        UserError: As ``stage_one_config``.
    """
    if config.init.stage1 != "unimodal":
        return {}
    return {name: stage_one_config(config, name) for name in source.problem.modalities if name not in config.init.runs}


def text_only_configs(config: Config, source: FusionData) -> dict[str, Config]:
    """Return the config of each text alone that is trained beside a fusion, by modality.

    Raises:
        UserError: As ``stage_one_config``.
    """
    texts, lone = _texts(config, source)
    return {name: stage_one_config(config, name) for name in texts if name not in lone}


def text_only_notes(config: Config, source: FusionData) -> list[str]:
    """Return a note on each text beside a fusion that is not trained alone, since its cases are of one class."""
    return untrained(*_texts(config, source))


def untrained(texts: Iterable[str], lone: Mapping[str, str]) -> list[str]:
    """Return these notes.

    Args:
        texts: What ``text_only`` returns.
        lone: What ``lone_classes`` returns.
    """
    told = "is not trained alone: its training cases are all"
    return [f"the text '{name}' {told} {lone[name]}" for name in texts if name in lone]


def _texts(config: Config, source: FusionData) -> tuple[list[str], dict[str, str]]:
    """Return the texts beside a fusion, and the modalities of which alone no class can be learned."""
    specs, table = source.problem.modalities, source.table
    present = pd.DataFrame(source.data.present, table.index, list(specs))
    texts = text_only(config.fusion["name"], specs, present.groupby(table["split"]).any().T)
    return texts, lone_classes(source.dataset, table, present)


def text_only(fusion: str, specs: Mapping[str, ModalitySpec], present: pd.DataFrame) -> list[str]:
    """Return the texts that are trained alone beside a fusion, since reports spell out the labels.

    Args:
        fusion: The strategy's name.
        specs: The modalities of the run.
        present: Whether, or for how many cases, each modality (rows) is there in each split (columns); without a text
            in every split there is nothing to be trained or scored.
    """
    if fusion == "unimodal" or len(specs) < 2:
        return []
    there = present.reindex(index=list(specs), columns=list(SPLITS), fill_value=0).astype(bool).all(axis=1)
    return [name for name, spec in specs.items() if spec.kind == "text" and there[name]]


def stage_one_config(config: Config, modality: str) -> Config:
    """Return the config of a modality's stage-1 run: the same, for that modality alone, with ``init.overrides``.

    What only a strategy of several parts has goes back to its default: rates of parts, stopping by part, a monitored
    score of the strategy's own.

    Raises:
        UserError: The overrides make it something that stage 2 cannot start from.
    """
    tree = config.to_dict()
    if not {"*", modality} & set(config.encoder):
        raise UserError(f"'{modality}' has no encoder to be trained alone with; set init.stage1=none")
    encoder = config.encoder.get("*") or {modality: config.encoder[modality]}
    tree |= {"fusion": {"name": "unimodal"}, "encoder": encoder, "init": {}}
    told = tree["data"].get("modalities")  # a csv's say what each modality is made of
    alone = {modality: told[modality]} if isinstance(told, Mapping) else [modality]
    tree["data"] = {k: v for k, v in tree["data"].items() if k != "masks"} | {"modalities": alone}
    tree["tracking"] = {**tree["tracking"], "run_name": None}
    tree["optimizer"] = {k: v for k, v in tree["optimizer"].items() if k != "parts"}
    own = () if config.trainer.monitor in HEADLINE else ("monitor",)
    tree["trainer"] = {k: v for k, v in tree["trainer"].items() if k not in ("stop", *own)}
    made = configs.from_dict(configs.merge(tree, config.init.overrides))
    if (
        made.fusion["name"] != "unimodal"
        or made.adapt != config.adapt
        or made.encoder != configs.from_dict(tree).encoder
    ):
        raise UserError(
            "init.overrides must leave fusion.name, adapt and encoder as they are: stage 2 starts from them"
        )
    return made


def needed(config: Config) -> tuple[str, ...]:
    """Return the artifacts without which a finished run is of no use: predictions, and what stage 2 starts from."""
    model = ("model/model.safetensors",) if config.fusion["name"] == "unimodal" else ()
    return ("predictions.parquet", *model)


def unimodal_state(run: TrackedRun, modality: str) -> UnimodalState:
    """Read what a stage-1 run hands on.

    Raises:
        UserError: The run is not of this modality alone.
    """
    folder = run.artifact("model")
    files = models.read(folder)
    if files.modalities != (modality,) or files.config.fusion["name"] != "unimodal":
        raise UserError(f"run {run.run_id} is no unimodal run of '{modality}', but of {', '.join(files.modalities)}")
    state = models.read_tensors(folder / "model.safetensors")
    head = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
    path = folder / "adapters" / f"{modality}.safetensors"
    adapter = models.read_tensors(path) if path.exists() else trained_base(state, modality)
    return UnimodalState(adapter, head, run.metrics().get("train_final/mAP", float("nan")))
