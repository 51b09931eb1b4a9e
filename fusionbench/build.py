"""From a checked config to objects: dataset, data, encoders, strategy, task, remaining mistakes found on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from fusionbench import registry
from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.views import EncoderPool
from fusionbench.config import Config, Node, data_options, optimizer_options
from fusionbench.data.base import Dataset, make_dataset
from fusionbench.data.module import FusionData, choose_modalities
from fusionbench.encoders.base import Encoder
from fusionbench.errors import UserError, nearest
from fusionbench.fusion.base import Strategy
from fusionbench.fusion.criterion import BinaryCrossEntropy, CrossEntropy
from fusionbench.registry import Component
from fusionbench.task import FusionTask
from fusionbench.types import ModalitySpec, Problem, Tokenizer

_LONGEST = 100  # characters of a class name, which is part of the names of metrics


def data(config: Config, fitted: Mapping[str, Any] | None = None) -> FusionData:
    """Build the DataModule: reads the case table and decodes what is not in the cache yet.

    Args:
        config: The run's config.
        fitted: With prediction, what the training run learned from its data.

    Raises:
        UserError: Data and config do not go together, or the data have a fault.
    """
    source = make_dataset(config.data)
    if fitted is None:
        check_modality_names(config, source)
    options = {k: v for k, v in config.data.items() if k in data_options() and k != "root"}
    specs = choose_modalities(source, options.get("modalities"))
    nodes = encoder_nodes(config, specs)
    check_strategy(config, specs, nodes)
    tokenizers: dict[str, Tokenizer] = {}
    for name, spec in specs.items():
        if spec.kind == "text":
            kind = registry.describe("encoder", nodes[name]["name"]).load()
            tokenizers[name] = kind.load_tokenizer(_options(nodes[name]))
    made = FusionData(source, tokenizers, config.seed, fitted, **options)
    check_complete(config, made.problem)
    check_class_names(made.problem.classes)
    return made


def check_data(config: Config, made: FusionData) -> None:
    """Refuse data that were read for another config of the same data node, as ``data`` does where it reads them.

    Raises:
        UserError: Data and config do not go together.
    """
    specs = made.problem.modalities
    check_modality_names(config, made.dataset)
    check_strategy(config, specs, encoder_nodes(config, specs))
    check_complete(config, made.problem)


def check_complete(config: Config, problem: Problem) -> None:
    """Refuse missing modalities where a strategy cannot take any.

    Raises:
        UserError: Says so.
    """
    component = registry.describe("fusion", config.fusion["name"])
    if component.constants.get("needs_all") and not problem.complete and len(problem.modalities) > 1:
        raise UserError(f"fusion '{component.name}' needs every modality of every case, but some are missing")


def check_class_names(names: Sequence[str]) -> None:
    """Refuse class names that are too long for the names of metrics.

    Raises:
        UserError: Says which.
    """
    for name in names:
        if len(name) > _LONGEST:
            raise UserError(
                f"the class name '{name[:40]}...' has {len(name)} characters, at most {_LONGEST} can be tracked (and 32"
                " tokens where a language model answers by it): shorten it"
            )


def encoder_nodes(config: Config, specs: Mapping[str, ModalitySpec]) -> dict[str, Node]:
    """Return the encoder node of each modality, those left out that the strategy reads without an encoder.

    Raises:
        UserError: A modality has no node, a node no modality, or an encoder cannot read a modality's kind.
    """
    unencoded = registry.describe("fusion", config.fusion["name"]).constants.get("unencoded", ())
    encoded = [name for name, spec in specs.items() if spec.kind not in unencoded]
    if "*" in config.encoder:
        nodes = dict.fromkeys(encoded, config.encoder["*"])
    else:
        for name in encoded:
            if name not in config.encoder:
                raise UserError(f"modality '{name}' has no encoder: add 'encoder.{name}: {{name: ...}}'")
        nodes = {name: config.encoder[name] for name in encoded}
    for name, node in nodes.items():
        kinds = registry.describe("encoder", node["name"]).constants.get("kinds", ("image", "slices"))
        if specs[name].kind not in kinds:
            fits = [e for e in registry.names("encoder") if specs[name].kind in _kinds(e)]
            raise UserError(
                f"encoder '{node['name']}' reads {' and '.join(kinds)}, but modality '{name}' is {specs[name].kind}; "
                f"possible are {', '.join(fits)}"
            )
    return nodes


def _kinds(encoder: str) -> tuple[str, ...]:
    return tuple(registry.describe("encoder", encoder).constants.get("kinds", ("image", "slices")))


def check_modality_names(config: Config, dataset: Dataset) -> None:
    """Refuse encoder nodes of modalities that the dataset does not have.

    Raises:
        UserError: Names the nearest modality, or says why the dataset lacks it.
    """
    offered = dataset.modalities
    for name in set(config.encoder) - {"*"}:
        if name not in offered:
            hint = f": {dataset.lacking[name]}" if name in dataset.lacking else nearest(name, offered)
            raise UserError(f"the config has an encoder for '{name}', which the dataset lacks{hint}")


def check_strategy(config: Config, specs: Mapping[str, ModalitySpec], nodes: Mapping[str, Node]) -> None:
    """Refuse a strategy that cannot take these modalities or encoders.

    Raises:
        UserError: Says which and why.
    """
    component = registry.describe("fusion", config.fusion["name"])
    least, most = component.constants.get("modality_count", (1, None))
    if len(specs) < least or (most is not None and len(specs) > most):
        raise UserError(f"fusion '{component.name}' takes {least} to {most or 'any'} modalities, not {len(specs)}")
    check_encoders(component, specs, nodes)
    check_parts(config, component)
    for name, node in nodes.items():
        takes = registry.describe("encoder", node["name"]).constants.get("takes_tokens", True)
        if component.constants.get("adds_tokens") and not takes:
            raise UserError(
                f"fusion '{component.name}' puts tokens into encoders, which '{node['name']}' of modality '{name}' "
                "cannot take; choose a transformer such as timm_vit, hf_text or table"
            )
        if component.constants.get("adds_tokens") and node.get("causal"):
            raise UserError(
                f"fusion '{component.name}' puts tokens behind an encoder's own, which those of a causal encoder never "
                f"see: set 'causal: false' for modality '{name}'"
            )


def check_encoders(component: Component, specs: Mapping[str, ModalitySpec], nodes: Mapping[str, Node]) -> None:
    """Refuse kinds and encoders that a strategy built on certain encoders does not take.

    Raises:
        UserError: Names what it takes.
    """
    possible: Mapping[str, tuple[str, ...]] = component.constants.get("encoders", {})
    if not possible:
        return
    kinds = [*possible, *component.constants.get("unencoded", ())]
    for name, spec in specs.items():
        if spec.kind not in kinds:
            raise UserError(
                f"fusion '{component.name}' takes {' and '.join(kinds)}, but modality '{name}' is {spec.kind}; choose "
                "others by data.modalities"
            )
        if name in nodes and nodes[name]["name"] not in possible[spec.kind]:
            raise UserError(
                f"fusion '{component.name}' reads {spec.kind} by {' or '.join(possible[spec.kind])}, not by "
                f"'{nodes[name]['name']}'; set encoder.{name}.name={possible[spec.kind][0]}"
            )


def check_parts(config: Config, component: Component) -> None:
    """Refuse to stop the parts of a strategy apart that has no two parts with a metric.

    Raises:
        UserError: Names the strategies that have.
    """
    if config.trainer.stop == "per_part" and not _has_parts(component):
        fits = [name for name in registry.names("fusion") if _has_parts(registry.describe("fusion", name))]
        raise UserError(
            f"trainer.stop is per_part, but fusion '{component.name}' is of one part only; set trainer.stop=whole, or "
            f"take one of several parts ({', '.join(fits) or 'there is none'})"
        )


def _has_parts(component: Component) -> bool:
    return len(component.constants.get("part_metrics", {})) > 1


def _options(node: Node) -> Node:
    return {k: v for k, v in node.items() if k != "name"}


def strategy(config: Config, problem: Problem) -> Strategy:
    """Build the strategy with its encoders; weights are loaded here, what is random depends on the seed alone.

    Raises:
        UserError: Its options or its encoders' do not go together.
    """
    nodes = encoder_nodes(config, problem.modalities)
    kinds: dict[str, tuple[type[Encoder], Node]] = {
        name: (registry.describe("encoder", node["name"]).load(), _encoder_options(config, node))
        for name, node in nodes.items()
    }
    method: Adaptation = registry.describe("adapt", config.adapt["name"]).load()(**_options(config.adapt))
    pool = EncoderPool(problem.modalities, kinds, method, config.seed)
    torch.manual_seed(config.seed)
    made: Strategy = registry.describe("fusion", config.fusion["name"]).load()(problem, pool, **_options(config.fusion))
    return made


def _encoder_options(config: Config, node: Node) -> Node:
    """Return an encoder's options, with what others determine if it has such an option.

    These are ``trainer.checkpointing``, and what the data normalise pictures by.
    """
    known, own = registry.describe("encoder", node["name"]).options, _options(node)
    if "checkpointing" in known and config.trainer.checkpointing:
        own["checkpointing"] = True
    if "normalize" in known:
        own["normalize"] = _normalize(config, own.get("normalize"))
    return own


def _normalize(config: Config, stated: object) -> object:
    """Return what the data normalise pictures by, which an encoder may state too."""
    default = registry.signature("fusionbench.data.transforms", "ImageTransform")["normalize"].default
    given = (config.data.get("transforms") or {}).get("normalize", default)
    if stated not in (None, given):
        raise UserError(
            f"an encoder's 'normalize' is {stated}, but data.transforms.normalize is {given}: leave out the encoder's, "
            "which is the data's then"
        )
    return given


def task(config: Config, source: FusionData, prepare: Callable[[Strategy], None] | None = None) -> FusionTask:
    """Build the LightningModule; the network itself is built when it asks for it.

    Args:
        config: The run's config.
        source: The data.
        prepare: Called with the new strategy, e.g. to load stage-1 states.
    """

    def build() -> Strategy:
        made = strategy(config, source.problem)
        if prepare is not None:
            prepare(made)
        return made

    own = {k: v for k, v in _options(config.optimizer).items() if k not in optimizer_options()}
    return FusionTask(
        source.problem,
        build,
        partial(registry.describe("optimizer", config.optimizer["name"]).load(), **own),
        partial(registry.describe("scheduler", config.scheduler["name"]).load(), **_options(config.scheduler)),
        criterion(config, source),
        config.optimizer.get("parts"),
    )


def criterion(config: Config, source: FusionData) -> CrossEntropy | BinaryCrossEntropy:
    """Return the loss that labels and options ask for."""
    weight = source.class_weights() if config.task.class_weights == "balanced" else None
    if source.problem.multilabel:
        return BinaryCrossEntropy(weight)
    return CrossEntropy(weight, config.task.label_smoothing)


def random_encoders(config: Config, names: Mapping[str, ModalitySpec]) -> list[str]:
    """Return the modalities whose encoder starts from random weights because the config says so.

    A model inside an encoder is told by its option, such as ``text.vision``.
    """
    return [found for name, node in encoder_nodes(config, names).items() for found in _random(name, node)]


def _random(name: str, node: Mapping[str, Any]) -> Iterator[str]:
    if node.get("weights") == "random":
        yield name
    for option, value in node.items():
        if isinstance(value, Mapping):
            yield from _random(f"{name}.{option}", value)
