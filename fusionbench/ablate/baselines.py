"""The rows that every comparison needs: each modality alone, and plain concatenation.

A strategy is held against the modalities alone as it is itself tuned, encoded and trained, on the data that it has, or
all these would be taken for its fusion. So each distinct setting among a column's strategies has baselines of its own:
the column's are named ``cfp alone`` and ``concat``, others after their tuning, ``cfp alone with lora``, where nothing
else is different, or after the first row that is so trained or encoded. Masks and learning rates of a strategy's own
parts are no setting: baselines have neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusionbench import config as configs
from fusionbench.config import Node
from fusionbench.errors import UserError

UNIMODAL, CONCAT = "unimodal", "concat"
Place = tuple[str, str]
Key = tuple[str, ...]
_TRAINING = ("optimizer", "scheduler", "trainer", "task")
_SETTING = ("adapt", "encoder", *_TRAINING)


def alone_name(modality: str) -> str:
    """Return the name of the row that has one modality alone."""
    return f"{modality} alone"


def modalities_of(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modalities of a config's data; none if only data that are not there could tell."""
    node = configs.resolve(tree).get("data")
    if not isinstance(node, Mapping):
        return ()
    if node.get("modalities"):
        return tuple(node["modalities"])
    from fusionbench.data.base import make_dataset

    try:
        return tuple(make_dataset(configs.check_node("data", "data", node)).modalities)
    except UserError:
        return ()


def alone(tree: Mapping[str, Any], modality: str) -> Node:
    """Return a config for one modality alone: adapt, encoder and trainer stay, and it starts from no other run.

    Masks, which nothing alone predicts, are not read, and rates of a fusion's parts are none of its. It has the fusion
    options that ``init.overrides`` gives stage 1, so that slices are pooled as they are there.
    """
    made = _plain(tree)
    options = ((tree.get("init") or {}).get("overrides") or {}).get("fusion") or {}
    encoder, told = dict(tree.get("encoder") or {}), tree["data"].get("modalities")
    if modality in encoder and "name" not in encoder:
        made["encoder"] = {modality: encoder[modality]}
    chosen = {modality: told[modality]} if isinstance(told, Mapping) else [modality]  # a csv's say what each is made of
    data = {**made["data"], "modalities": chosen}
    return made | {"fusion": {**options, "name": UNIMODAL}, "data": data, "init": {}}


def is_alone(tree: Mapping[str, Any], column: Mapping[str, Any]) -> str | None:
    """Return the modality that a row of a column has alone; how it is trained is for its key to say."""
    if not _is(tree, UNIMODAL) or _is(column, UNIMODAL):
        return None
    names = [(tree["fusion"].get("modality")), *modalities_of(tree)]
    return names[0] or (names[1] if len(names) == 2 else None)


@dataclass
class Baselines:
    """The baselines of a table, found among its rows or made.

    Args:
        where: The table, for messages.
        wanted: Which are made where no row is one already: "unimodal", "concat".
        columns: Each column's config.
        rows: The rows' names.
        trees: Each row and column's config; those made are added to it.

    Attributes:
        added: Names of the rows made, unimodals first.
        own_unimodals: For each strategy and column the rows of its modalities alone, in its own setting.
        own_concat: For each strategy and column the row of plain concatenation in its own setting.

    Raises:
        UserError: A row that is something else has the name of a baseline.
    """

    where: str
    wanted: Sequence[str]
    columns: Mapping[str, Node]
    rows: Sequence[str]
    trees: dict[Place, Node]
    added: list[str] = field(default_factory=list, init=False)
    own_unimodals: dict[Place, tuple[str, ...]] = field(default_factory=dict, init=False)
    own_concat: dict[Place, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._modalities = {column: modalities_of(tree) for column, tree in self.columns.items()}
        self._alone = {column: self._rows_alone(column) for column in self.columns}
        tunings = [tree.get("adapt") or {} for tree in (*self.columns.values(), *self.trees.values())]
        self._tunings = {_text(node): node.get("name") for node in tunings}
        settings = [(column, *setting) for column in self.columns for setting in self._settings(column)]
        settings.sort(key=lambda setting: setting[1] != "")  # the columns' own come first in the table
        for make in (self._make_unimodals, self._make_concat):
            for setting in settings:
                make(*setting)

    def _rows_alone(self, column: str) -> dict[Key, str]:
        """Return the given rows that are one modality alone, by what they are."""
        given = [(row, self.trees[row, column]) for row in self.rows if (row, column) in self.trees]
        base = self.columns[column]
        return {_key(tree, modality): row for row, tree in given if (modality := is_alone(tree, base)) is not None}

    def _settings(self, column: str) -> list[tuple[str, Node, list[str]]]:
        """Return each setting in a column: label (empty for the column's own), base config, strategies."""
        base = self.columns[column]
        found: dict[Key, tuple[str, Node, list[str]]] = {_key(base): ("", base, [])}
        for row in self._strategies(column):
            tree = self.trees[row, column]
            own = base | {key: tree[key] for key in (*_SETTING, "init") if key in tree}
            own["data"] = _on_all(tree, base)
            found.setdefault(_key(tree), (self._label(row, column), own, []))[2].append(row)
        return list(found.values())

    def _strategies(self, column: str) -> Iterator[str]:
        for row in self.rows:
            tree = self.trees.get((row, column))
            if tree is not None and not _is(tree, UNIMODAL) and len(self._modalities_in(column, tree)) != 1:
                yield row

    def _modalities_in(self, column: str, tree: Node) -> tuple[str, ...]:
        """Return the modalities of a row; those of the column where it has the column's data."""
        return self._modalities[column] if tree.get("data") == self.columns[column].get("data") else modalities_of(tree)

    def _label(self, row: str, column: str) -> str:
        """Return what the baselines like a row are told apart by: its tuning's name if that says all, else its own."""
        tree, base = self.trees[row, column], self.columns[column]
        name = (tree.get("adapt") or {}).get("name")
        alike = list(self._tunings.values()).count(name)
        only_tuning = _key({**tree, "adapt": None}) == _key({**base, "adapt": None})
        return str(name) if name and alike == 1 and only_tuning else row

    def _make_unimodals(self, column: str, label: str, setting: Node, strategies: list[str]) -> None:
        there = self._alone[column]
        for modality in self._modalities[column] if UNIMODAL in self.wanted else ():
            if _key(setting, modality) not in there:
                name = self._add(_name(alone_name(modality), label), column, alone(setting, modality))
                there[_key(setting, modality)] = name
        for row in strategies:
            own = self._modalities_in(column, self.trees[row, column])
            known = set(own) <= set(self._modalities[column])
            names = [there.get(_key(setting, modality)) for modality in own if known]
            self.own_unimodals[row, column] = tuple(name for name in names if name)

    def _make_concat(self, column: str, label: str, setting: Node, strategies: list[str]) -> None:
        tree = configs.merge(_plain(setting), {"fusion": {"name": CONCAT}})
        given = ((row, self.trees.get((row, column))) for row in self.rows)
        name = next((row for row, own in given if own is not None and _plain(own) == tree), None)
        if name is None and CONCAT in self.wanted:
            name = self._add(_name(CONCAT, label), column, tree)
            keys = [_key(setting, modality) for modality in self._modalities[column]]
            self.own_unimodals[name, column] = tuple(row for key in keys if (row := self._alone[column].get(key)))
        if name is not None:
            self.own_concat |= {(row, column): name for row in strategies if row != name}

    def _add(self, name: str, column: str, tree: Node) -> str:
        if name in self.rows or (name, column) in self.trees:
            raise UserError(
                f"{self.where} has a row '{name}' which is not the baseline of that name; name the row otherwise"
            )
        self.added += [name] if name not in self.added else []
        self.trees[name, column] = tree
        return name


def _is(tree: Mapping[str, Any], fusion: str) -> bool:
    return bool((tree.get("fusion") or {}).get("name") == fusion)


def _plain(tree: Mapping[str, Any]) -> Node:
    """Return a config without what only some strategies can take: masks to predict, rates of their own parts."""
    made, theirs = dict(tree), {"data": "masks", "optimizer": "parts"}
    for node, key in theirs.items():
        if node in made:
            made[node] = {k: v for k, v in (made[node] or {}).items() if k != key}
    return made


def _name(baseline: str, label: str) -> str:
    """Return a baseline's name; it has no comma, which would part names on the command line."""
    return f"{baseline} with {label}" if label else baseline


def _on_all(tree: Mapping[str, Any], base: Mapping[str, Any]) -> Node:
    """Return a row's data with the modalities of its column."""
    told, kept = base["data"].get("modalities"), dict(tree["data"])
    kept.pop("modalities", None)
    return kept if told is None else {**kept, "modalities": told}


def _key(tree: Mapping[str, Any], modality: str = "") -> Key:
    """Return how a config is tuned, encoded and trained and on what data, or how one modality of it is."""
    tree = _plain(tree)
    encoder, data = tree.get("encoder") or {}, dict(tree.get("data") or {})
    own = encoder.get(modality, encoder) if "name" not in encoder else encoder
    told = data.pop("modalities", None)  # a csv's say what each modality is made of
    spec = told.get(modality) if isinstance(told, Mapping) else None
    trained = [tree.get(part) or {} for part in _TRAINING]
    return (modality, *map(_text, (tree.get("adapt") or {}, own, *trained, data, spec or {})))


def _text(node: object) -> str:
    return json.dumps(node, sort_keys=True, default=str)
