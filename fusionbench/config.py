"""From yaml files and ``key=value`` overrides to one checked, plain ``Config``.

Read, extend, merge, override, resolve ``${...}`` once, check. The top level is closed; a component node
``{name, ...options}`` is checked against the signature of the component it names, with no component imported.
Choosing another ``name`` drops the options of the component named before.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionbench import registry
from fusionbench.annotated import typed
from fusionbench.errors import UserError, nearest
from fusionbench.metrics import ANSWERS, check_metric
from fusionbench.sections import InitOptions, TaskOptions, TextOptions, TrackingOptions, TrainerOptions, form

Node = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """One run, whole. ``encoder`` maps ``"*"`` or a modality's name to a node."""

    data: Node
    encoder: dict[str, Node]
    fusion: Node
    adapt: Node
    optimizer: Node
    scheduler: Node
    task: TaskOptions = field(default_factory=TaskOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    init: InitOptions = field(default_factory=InitOptions)
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that yaml can hold and ``from_dict`` reads back."""
        values = dataclasses.asdict(self)
        if set(self.encoder) == {"*"}:
            values["encoder"] = values["encoder"]["*"]
        return values

    def public(self) -> dict[str, Any]:
        """Return what a tracker may hold: the same without the password that a server's address may carry."""
        values = self.to_dict()
        uri = self.tracking.uri
        values["tracking"]["uri"] = without_password(uri) if uri else uri
        return values


_DEFAULTS = {"adapt": "mor", "optimizer": "sgd", "scheduler": "cyclic"}
SECTIONS: dict[str, type] = {
    "task": TaskOptions,
    "trainer": TrainerOptions,
    "tracking": TrackingOptions,
    "init": InitOptions,
}
TOP_LEVEL = ("extends", *(f.name for f in dataclasses.fields(Config)))


def without_password(text: str) -> str:
    """Return a text with the name and password left out that an address such as ``https://me:secret@host`` carries."""
    return re.sub(r"//[^/\s]*@", "//", text)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file with everything it extends, apply overrides, and check the whole.

    Raises:
        UserError: Any mistake, in one sentence.
    """
    tree = merge(read(Path(path)), parse_overrides(overrides))
    return from_dict(tree)


def read(path: Path, seen: tuple[Path, ...] = ()) -> Node:
    """Read one yaml file, merged over the files that its ``extends`` names, relative to it."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = path.resolve()
    if path in seen:
        raise UserError(f"config '{path.name}' extends itself by way of {' -> '.join(p.name for p in seen)}")
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.yaml")]) if path.parent.is_dir() else ""
        raise UserError(f"there is no config file '{path}'{near}")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config '{path.name}' is no valid yaml: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"config '{path.name}' must hold keys and values; possible keys are {', '.join(TOP_LEVEL)}")
    parents = tree.pop("extends", None) or []
    merged: Node = {}
    listed = [parents] if isinstance(parents, str) else parents
    if not isinstance(listed, list) or not all(isinstance(parent, str) for parent in listed):
        raise UserError(f"config '{path.name}': 'extends' must be a file's name or a list of them, not {parents!r}")
    for parent in listed:
        merged = merge(merged, read(path.parent / parent, (*seen, path)))
    return merge(merged, typing.cast(Node, tree))


def parse_overrides(overrides: Sequence[str]) -> Node:
    """Turn ``["fusion.name=concat", "seed=3"]`` into a tree, with values read as yaml."""
    from omegaconf import OmegaConf

    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"'{override}' is no override: write key=value, e.g. trainer.max_epochs=5")
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=False)
    except Exception as error:  # OmegaConf and its yaml reader raise many kinds
        raise UserError(f"an override could not be read: {' '.join(str(error).split())}") from None
    return typing.cast(Node, tree)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Node:
    """Merge ``over`` into ``base``; a node that names another component replaces the old one with its options."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        keeps = isinstance(old, Mapping) and isinstance(value, Mapping) and not _replaces(old, value)
        merged[key] = merge(typing.cast(Node, old), typing.cast(Node, value)) if keeps else value
    return merged


def _replaces(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if "name" in new:
        return bool(new["name"] != old.get("name"))
    all_nodes = bool(new) and all(isinstance(v, Mapping) and "name" in v for v in new.values())
    return "name" in old and all_nodes


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Resolve ``${...}`` and check a merged tree.

    Raises:
        UserError: An unknown key or component, an unknown option, a wrong type, or something required and not given.
    """
    values = resolve(tree)
    for key in values:
        if key not in TOP_LEVEL:
            raise UserError(f"unknown key '{key}' in the config{nearest(str(key), TOP_LEVEL)}")
    for key in ("data", "encoder", "fusion"):
        if not isinstance(values.get(key), Mapping):
            raise UserError(f"the config must say '{key}: {{name: ...}}'; possible are {_known(key)}")
    for key, section in SECTIONS.items():
        values[key] = check_section(key, section, values.get(key) or {})
    values["encoder"] = _encoder_nodes(values["encoder"])
    for key, default in _DEFAULTS.items():
        node = values.get(key, {})
        values[key] = {"name": default, **node} if isinstance(node, Mapping) else node
    for key in ("data", "fusion", *_DEFAULTS):
        values[key] = check_node(key, key, values[key])
    values["seed"] = typed("seed", "int", values.get("seed", 0))
    config = Config(**values)
    _check_monitor(config)
    return config


def _check_monitor(config: Config) -> None:
    """Refuse to monitor what validation does not score.

    Raises:
        UserError: There is no such metric, or answers are to be monitored and none are written.
    """
    fusion, monitor = registry.describe("fusion", config.fusion["name"]), config.trainer.monitor
    writes = config.fusion.get("decode") == "generate"
    if monitor in ANSWERS and not writes:
        remedy = "set fusion.decode=generate" if "decode" in fusion.options else "choose one that does, such as mllm"
        raise UserError(
            f"trainer.monitor is '{monitor}', but fusion '{fusion.name}' as it is set writes no answers; {remedy}"
        )
    scores: tuple[str, ...] = fusion.constants.get("score_names", ())
    check_metric(monitor, further=(*scores, *(ANSWERS if writes else ())))


def resolve(tree: Mapping[str, Any]) -> Node:
    """Resolve ``${...}``, once, after the last merge.

    Raises:
        UserError: A key that it points to is not there, or a value is missing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        container = OmegaConf.to_container(OmegaConf.create(dict(tree)), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the config cannot be resolved: {str(error).splitlines()[0]}") from None
    return typing.cast(Node, container)


def _encoder_nodes(node: Node) -> dict[str, Node]:
    if "name" in node:
        return {"*": check_node("encoder", "encoder", node)}
    return {modality: check_node("encoder", f"encoder.{modality}", sub) for modality, sub in node.items()}


def _known(kind: str) -> str:
    return ", ".join(registry.names(kind))


def options_of(kind: str, name: str) -> dict[str, registry.Option]:
    """Return all options of a node: the component's own, and those that every dataset and every optimizer has."""
    around = {"data": data_options, "optimizer": optimizer_options}.get(kind, dict)
    return {**around(), **registry.describe(kind, name).options}


def data_options() -> dict[str, registry.Option]:
    """Return the options that every dataset's node has, from the signature of the DataModule."""
    root = registry.Option("root", "str | None", None)
    return {"root": root, **registry.signature("fusionbench.data.module", "FusionData")}


def optimizer_options() -> dict[str, registry.Option]:
    """Return the options that every optimizer's node has: learning rates of parts."""
    return registry.signature("fusionbench.optim.groups", "parameter_groups")


def check_node(kind: str, where: str, node: object) -> Node:
    """Check ``{name, ...options}`` against the component's signature; return it with plain values."""
    if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
        raise UserError(f"'{where}' must be {{name: ..., options}}, not {node!r}; possible names are {_known(kind)}")
    name = node["name"]
    options = options_of(kind, name)
    if kind == "data":
        check_section("data.text", TextOptions, {} if node.get("text") is None else node["text"])
    checked: Node = {"name": name}
    for key, value in node.items():
        if key == "name":
            continue
        if key not in options:
            raise UserError(f"{kind} '{name}' has no option '{where}.{key}'{nearest(str(key), options)}")
        checked[key] = typed(f"{where}.{key}", options[key].annotation, value)
    for option in options.values():
        if option.required and option.name not in checked:
            raise UserError(f"{kind} '{name}' needs '{where}.{option.name}' ({option.annotation})")
    if kind == "data":
        _check_transforms(checked.get("transforms") or {})
    return checked


def _check_transforms(node: Mapping[str, Any]) -> None:
    options = registry.signature("fusionbench.data.transforms", "ImageTransform")
    for key, value in node.items():
        if key not in options:
            raise UserError(f"there is no transform 'data.transforms.{key}'{nearest(str(key), options)}")
        typed(f"data.transforms.{key}", options[key].annotation, value)


def check_section(name: str, section: type, node: object) -> Any:  # noqa: ANN401 - the section's own class
    """Check one of the closed sections and return its dataclass."""
    if not isinstance(node, Mapping):
        raise UserError(f"'{name}' must hold keys and values, as in {form(section)}, not {node!r}")
    known = {f.name: str(f.type) for f in dataclasses.fields(section)}
    for key in node:
        if key not in known:
            raise UserError(f"unknown key '{name}.{key}'{nearest(str(key), known)}")
    return section(**{key: typed(f"{name}.{key}", known[key], value) for key, value in node.items()})


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return a tree's leaves by dotted key."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            flat[name] = ", ".join(str(v) for v in value)
        else:
            flat[name] = value
    return flat
