"""A user's own CSV, one row a case: columns for the patient, the split, the labels and each modality, named in yaml."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fusionbench.data.base import FIXED_COLUMNS, Dataset
from fusionbench.data.cells import column_values, json_list, json_values, read_table, whole_number
from fusionbench.data.nodes import check_node
from fusionbench.data.options import at_least_one, check_split_seed
from fusionbench.data.splits import SPLITS, rarest_class, split_cases
from fusionbench.errors import UserError, nearest
from fusionbench.registry import register
from fusionbench.types import ModalitySpec


@register
class Csv(Dataset):
    """Your own table: one row a case, each modality a column or several, no code needed.

    Each entry of ``modalities`` states its kind; kinds are never guessed and an empty cell is a missing modality::

        cfp:   {kind: image, column: image1}             # paths relative to the csv, several separated by |
        scan:  {kind: slices, column: volume, instances: 4}    # a .npy volume (S, H, W), 4 slices of it at a time
        notes: {kind: text, column: report}
        labs:  {kind: table, columns: [age, crp]}        # or column: one JSON list in a cell, or prefix: table.

    What is drawn on single pictures lies in columns of its own, named at the picture and read by ``data.masks``; a cell
    is one file whose brighter half of values is foreground, and an empty cell is no mask::

        cfp:   {kind: image, column: image1, masks: {vessels: vessel_file}}    # read with data.masks=[vessels]

    A table's column is numeric if all its values are numbers, else categorical; NA, N/A, NaN and null are missing too.

    Args:
        root: Folder that ``path`` is relative to; the working directory if None.
        path: The csv file.
        modalities: What each modality is made of, in the order in which strategies see them.
        targets: 0/1 columns, one a class, of a multi-label task; an empty cell or -1 is unknown.
        label: Column of the class, by name or by number from 0; empty or -1 is unknown, and so is a column not there.
        classes: Class names in label order; by default the labels' own names sorted, or their numbers.
        group: Column of the patient; without the default column each case is its own patient, with a warning.
        case: Column of the case's unique name.
        split: Column that says train, val or test; without the default column the split is seeded, by patient.
        fractions: Shares of train, val and test in a seeded split; ``[0, 0, 1]`` makes all cases test.
        split_seed: Seed of that split; without any label there is none, and all cases are test.
        size: Height and width in pixels that pictures are resized to, unless a modality names its own.
    """

    def __init__(
        self,
        root: str | None,
        *,
        path: str,
        modalities: Mapping[str, Mapping[str, Any]],
        targets: Sequence[str] | None = None,
        label: str = "label",
        classes: Sequence[str] | None = None,
        group: str = "group_id",
        case: str = "case_id",
        split: str = "split",
        fractions: Sequence[float] = (0.7, 0.1, 0.2),
        split_seed: int = 0,
        size: int = 224,
    ) -> None:
        at_least_one(size=size)
        check_split_seed(split_seed)
        self._check_names(modalities, targets)
        self.path = (Path(root or ".") / path).resolve()
        self.split, self.fractions, self.split_seed = split, fractions, split_seed
        self._table = self._read()
        self._case_id = self._case_ids(case)
        self._group_id = self._groups(group)
        self.multilabel = targets is not None
        if targets is not None:
            self.classes, self._targets = tuple(targets), self._multilabel(list(targets), classes)
        else:
            self.classes, self._targets = self._multiclass(label, classes)
        self.modalities = {name: self._spec(name, node, size) for name, node in modalities.items()}
        self._nodes, self._masks = modalities, self._mask_columns(modalities)
        self.masks = {name: picture for name, (picture, _) in self._masks.items()}
        self.lacking = {name: self._without(column) for name, column in self._unread(modalities).items()}

    def cases(self) -> pd.DataFrame:
        """Return the case table of the csv; see ``Dataset``."""
        cases = pd.DataFrame({"case_id": self._case_id, "group_id": self._group_id}).join(self._targets)
        cases["split"] = self._splits(cases)
        for name, spec in self.modalities.items():
            cases[name] = self._values(name, spec)
        for mask, (picture, column) in self._masks.items():
            items = [self._items(text, picture, self.modalities[picture]) for text in self._cells(column)]
            cases[mask] = pd.Series(items, index=cases.index, dtype=object)
        order = [*FIXED_COLUMNS, *self._targets, *self.modalities, *self._masks]
        return cases[order].sort_values("case_id", ignore_index=True)

    def _cells(self, column: str) -> pd.Series:
        """Return a column's cells as stripped text."""
        if column not in self._table:
            raise UserError(self._without(column))
        return self._table[column]

    def _without(self, column: str) -> str:
        """Say that there is no such column."""
        hint = "; is it separated by ';'?" if any(";" in str(name) for name in self._table) else ""
        return f"'{self.path}' has no column '{column}'{hint or nearest(column, map(str, self._table))}"

    def _read(self) -> pd.DataFrame:
        if not self.path.is_file():
            raise UserError(
                f"there is no file '{self.path}': data.path is relative to data.root, or else to the working directory"
            )
        table = read_table(self.path)
        if table.empty:
            raise UserError(f"'{self.path}' has a header but no case: give each case a row")
        return table

    def _case_ids(self, column: str) -> pd.Series:
        names = self._cells(column)
        if (names == "").any():
            row = int((names == "").to_numpy().argmax())
            raise UserError(f"row {row + 1} of '{self.path}' has no '{column}': give each case a name of its own")
        if names.duplicated().any():
            raise UserError(
                f"case '{names[names.duplicated()].iloc[0]}' is in '{self.path}' more than once: '{column}' must be "
                f"unique; several pictures of a case go into one cell, separated by |"
            )
        return names

    def _check_names(self, modalities: Mapping[str, Any], targets: Sequence[str] | None) -> None:
        if targets is not None and not targets:
            raise UserError("data.targets is empty: name the columns of 0 and 1, or leave it out to use data.label")
        if not modalities:
            raise UserError(
                "data.modalities is empty: name at least one, such as {photo: {kind: image, column: image}}"
            )
        taken = {*FIXED_COLUMNS, *(["label"] if targets is None else targets)}
        for name, node in modalities.items():
            if name in taken:
                raise UserError(
                    f"a modality cannot be called '{name}', which is a column of its own: choose another name"
                )
            check_node(name, node)

    def _groups(self, column: str) -> pd.Series:
        if column == "group_id" and column not in self._table:
            warnings.warn(
                f"'{self.path}' has no column 'group_id', so each case counts as its own patient; if a patient has "
                f"several cases, name the patient's column in data.group",
                stacklevel=3,
            )
            return self._case_id
        groups = self._cells(column)
        if (groups == "").any():
            raise UserError(f"case '{self._case_id[groups == ''].iloc[0]}' has no '{column}': name its patient")
        return groups

    def _splits(self, cases: pd.DataFrame) -> pd.Series:
        if self.split != "split" or self.split in self._table:
            splits = self._cells(self.split)
            wrong = ~splits.isin(SPLITS)
            if wrong.any():
                case, given = self._case_id[wrong].iloc[0], splits[wrong].iloc[0]
                raise UserError(f"the '{self.split}' of case '{case}' is '{given}'{nearest(given, SPLITS)}")
            return splits
        if (self._targets == -1).all(axis=None):
            return pd.Series("test", index=cases.index)
        strata = rarest_class(self._targets) if self.multilabel else cases["label"]
        return split_cases(cases, strata, self.fractions, self.split_seed)

    def _multiclass(self, column: str, classes: Sequence[str] | None) -> tuple[tuple[str, ...], pd.DataFrame]:
        """Return the class names, and the label of each case as a number."""
        cells = self._table.get(column, pd.Series("", index=self._table.index))
        numbers = cells.map(whole_number)
        known = cells[(cells != "") & (numbers != -1)]
        if classes is None and numbers[known.index].notna().all():
            classes = [str(number) for number in range(int(numbers[known.index].max()) + 1)] if len(known) else []
        names = tuple(classes) if classes is not None else tuple(sorted(set(known)))
        codes = {name: code for code, name in enumerate(names)}
        labels = cells.map(codes).where(cells.isin(codes), numbers).where(cells != "", -1)
        wrong = ~labels.isin(range(-1, len(names)))
        if wrong.any():
            given, case = cells[wrong].iloc[0], self._case_id[wrong].iloc[0]
            hint = nearest(given, names) if whole_number(given) is None else f"; possible are 0 to {len(names) - 1}"
            raise UserError(f"label '{given}' of case '{case}' is out of range{hint}")
        return names, labels.astype(int).to_frame("label")

    def _multilabel(self, columns: list[str], classes: Sequence[str] | None) -> pd.DataFrame:
        """Return a column of 0, 1 or -1 for each target."""
        if classes is not None:
            raise UserError("data.classes and data.targets exclude each other: the targets' columns name the classes")
        if not any(column in self._table for column in columns):
            return pd.DataFrame(-1, index=self._table.index, columns=columns)
        values = {column: self._cells(column).replace("", "-1").map(whole_number) for column in columns}
        for column, numbers in values.items():
            wrong = ~numbers.isin([-1, 0, 1])
            if wrong.any():
                case, given = self._case_id[wrong].iloc[0], self._table[column][wrong].iloc[0]
                raise UserError(f"'{column}' of case '{case}' is '{given}', out of range: possible are 0, 1 and empty")
        return pd.DataFrame(values).astype(int)

    def _spec(self, name: str, node: Mapping[str, Any], size: int) -> ModalitySpec:
        """Return what a modality is made of."""
        kind = node["kind"]
        if kind == "table":
            return ModalitySpec("table", columns=self._columns(name, node))
        self._cells(node["column"])
        if kind == "text":
            return ModalitySpec("text")
        instances = node.get("instances", 4 if kind == "slices" else 1)
        return ModalitySpec(kind, size=node.get("size", size), instances=instances)

    def _mask_columns(self, modalities: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
        """Return each mask's picture and the csv's column that it lies in; a column that is not there is none.

        A mask that nobody reads may be missing, as in a csv of cases to predict.
        """
        found: dict[str, tuple[str, str]] = {}
        for picture, node in modalities.items():
            for name, column in node.get("masks", {}).items():
                if name in found or name in modalities or name in (*FIXED_COLUMNS, *self._targets):
                    raise UserError(f"a mask of '{picture}' cannot be called '{name}', which is taken: choose another")
                found[name] = picture, column
        return {name: place for name, place in found.items() if place[1] in self._table}

    def _unread(self, modalities: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Return the columns of masks that the csv does not have, by mask."""
        columns = {n: c for node in modalities.values() for n, c in node.get("masks", {}).items()}
        return {name: column for name, column in columns.items() if name not in self._masks}

    def _columns(self, name: str, node: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of a table's columns."""
        if "columns" in node:
            columns = (node["columns"],) if isinstance(node["columns"], str) else tuple(node["columns"])
            for column in columns:
                self._cells(column)
        elif "prefix" in node:
            columns = tuple(column for column in map(str, self._table) if column.startswith(node["prefix"]))
        else:
            cells = self._cells(node["column"])
            rows = {len(json_list(text, name)) for text in cells if text}
            if len(rows) > 1:
                raise UserError(f"the lists of table '{name}' differ in length ({min(rows)} to {max(rows)} values)")
            columns = tuple(f"{node['column']}.{i}" for i in range(max(rows, default=0)))
        if not columns:
            raise UserError(f"table '{name}' has no columns: '{self.path}' holds none that its node names")
        return columns

    def _values(self, name: str, spec: ModalitySpec) -> pd.Series:
        """Return a modality's cells in the form that ``Dataset`` states for its kind."""
        node, cells = self._nodes[name], self._table.index.to_series()
        if spec.kind == "table":
            if "column" in node:
                rows = [json_values(json_list(text, name) if text else ()) for text in self._cells(node["column"])]
            else:
                rows = list(zip(*(column_values(self._table[column]) for column in spec.columns), strict=True))
            filled: list[Any] = [row if any(value is not None for value in row) else None for row in rows]
            return pd.Series(filled, index=cells.index, dtype=object)
        column = self._cells(node["column"])
        if spec.kind == "text":
            return column.astype(object)
        return pd.Series([self._items(text, name, spec) for text in column], index=cells.index, dtype=object)

    def _items(self, text: str, name: str, spec: ModalitySpec) -> tuple[str, ...]:
        items = tuple(str(self.path.parent / item.strip()) for item in text.split("|") if item.strip())
        if spec.kind == "slices" and len(items) > 1:
            raise UserError(f"modality '{name}' of kind slices is one volume a case, but a cell is '{text}'")
        return items
