"""An ablation table as yaml says it: a base, columns, rows as differences from it, seeds, and what a paper printed.

Read and checked whole, no data touched but to ask a dataset for its modalities where the config leaves them open. A
row of one modality alone and one of plain concatenation are added to every column unless ``baselines`` leaves them out,
and once more for each other tuning or encoder that a strategy has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionbench import config as configs
from fusionbench import registry
from fusionbench.ablate.baselines import CONCAT, UNIMODAL, Baselines
from fusionbench.ablate.keys import Printed, check_keys, floats, mapping, names, numbers, published_of
from fusionbench.config import Config, Node
from fusionbench.errors import UserError, nearest
from fusionbench.metrics import ANSWERS, HEADLINE, check_metric

KEYS = (
    *("title", "base", "seeds", "metric", "metrics", "margin"),
    *("columns", "means", "rows", "baselines", "published"),
)
MEAN, ONLY = "mean", "only"


@dataclass(frozen=True)
class Table:
    """A checked table; a run is a row, a column and a seed.

    Attributes:
        name: The file's name without its ending; names the results.
        path: The file.
        title: One line.
        seeds: The seeds of every row and column.
        metric: The headline metric of the verdicts.
        metrics: The metrics shown, scores of some rows' strategies among them, such as ``dice``.
        margin: Within which two rows count as tied.
        columns: The columns' names.
        rows: The rows' names, the baselines that were added first.
        means: Named means over some columns, or over means before them, as a paper prints them.
        published: What the paper printed, by row, then by column, mean or ``"mean"``, then by metric, a number or the
            two ends of a range; ``parameters`` is a count.
        own_unimodals: For each strategy and column the rows of its modalities alone, tuned and encoded as it is.
        own_concat: For each strategy and column the row of plain concatenation that is tuned and encoded as it is.
        trees: Each row and column's merged config, overrides included, before the seed; a row that is not in a
            column has none there.
    """

    name: str
    path: Path
    title: str
    seeds: tuple[int, ...]
    metric: str
    metrics: tuple[str, ...]
    margin: float
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    means: Mapping[str, tuple[str, ...]]
    published: Mapping[str, Mapping[str, Mapping[str, Printed]]]
    own_unimodals: Mapping[tuple[str, str], tuple[str, ...]]
    own_concat: Mapping[tuple[str, str], str]
    trees: Mapping[tuple[str, str], Node]

    def config(self, row: str, column: str, seed: int) -> Config:
        """Return the checked config of a run.

        Raises:
            UserError: A mistake in it; says which row and column it is in.
        """
        try:
            return configs.from_dict({**self.trees[row, column], "seed": seed})
        except UserError as error:
            raise UserError(f"table '{self.name}', row '{row}', column '{column}': {error}") from None

    @property
    def digest(self) -> str:
        """A hash of what the table runs, wherever it lies and wherever its runs are kept."""
        kept = [[*cell, {k: v for k, v in tree.items() if k != "tracking"}] for cell, tree in self.trees.items()]
        text = json.dumps([self.name, self.title, self.seeds, kept], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(path: str | Path, overrides: Sequence[str] = ()) -> Table:
    """Read a table with every config that it names, and check all of them.

    Args:
        path: The yaml file.
        overrides: ``key=value``, applied to the config of every run.

    Raises:
        UserError: Any mistake, in one sentence.
    """
    path = Path(path).resolve()
    node = configs.read(path)
    where = f"table '{path.stem}'"
    check_keys(where, node, KEYS)
    if not isinstance(node.get("title"), str):
        raise UserError(f"{where} needs 'title', one line that says what it compares, not {node.get('title')!r}")
    over = configs.parse_overrides(overrides)
    columns = {name: configs.merge(tree, over) for name, tree in _columns(path, where, node).items()}
    differences = _rows(path, where, node, columns)
    trees = {
        (row, column): configs.merge(configs.merge(columns[column], difference), over)
        for row, (difference, only) in differences.items()
        for column in only
    }
    baselines = Baselines(where, _baselines(where, node), columns, tuple(differences), trees)
    rows = (*baselines.added, *differences)
    means, scores = _means(where, node, columns), _own_scores(trees.values())
    shown = names(where, "metrics", node.get("metrics", ["mAP", "mAUC"]))
    table = Table(
        name=path.stem,
        path=path,
        title=node["title"],
        seeds=numbers(where, "seeds", node.get("seeds", [0, 1, 2])),
        metric=_metric_of_verdicts(where, node.get("metric", "mAP"), scores),
        metrics=tuple(_metric(where, metric, scores) for metric in shown),
        margin=floats(where, "margin", node.get("margin", 0.02)),
        columns=tuple(columns),
        rows=rows,
        means=means,
        published=published_of(where, node.get("published") or {}, rows, [*columns, *means, MEAN], scores),
        own_unimodals=baselines.own_unimodals,
        own_concat=baselines.own_concat,
        trees=trees,
    )
    for row, column in trees:
        table.config(row, column, table.seeds[0])
    return table


def _columns(path: Path, where: str, node: Node) -> dict[str, Node]:
    """Return each column's config, base included; without ``columns`` there is one, named after the dataset."""
    base = _files(path, where, "base", node.get("base"))
    given = node.get("columns")
    if given is None:
        data = base.get("data")
        return {str(data["name"]) if isinstance(data, Mapping) and "name" in data else "all": base}
    found = mapping(where, "columns", given)
    return {name: configs.merge(base, _difference(path, f"{where}, column '{name}'", d)) for name, d in found.items()}


def _rows(path: Path, where: str, node: Node, columns: Mapping[str, Any]) -> dict[str, tuple[Node, tuple[str, ...]]]:
    """Return each row's difference and the columns it is in: all, or those that its ``only`` names."""
    rows = {}
    for name, difference in mapping(where, "rows", node.get("rows")).items():
        here, own = f"{where}, row '{name}'", difference
        only = tuple(columns)
        if isinstance(difference, Mapping) and ONLY in difference:
            own = {key: value for key, value in difference.items() if key != ONLY}
            only = _columns_named(here, ONLY, difference[ONLY], columns)
        rows[name] = (_difference(path, here, own), only)
    return rows


def _columns_named(where: str, key: str, value: object, known: Iterable[str]) -> tuple[str, ...]:
    listed = names(where, key, value)
    for column in listed:
        if column not in set(known):
            raise UserError(f"{where}: '{key}' names an unknown column '{column}'{nearest(column, known)}")
    return listed


def _difference(path: Path, where: str, node: object) -> Node:
    """Return a row's or column's difference, merged over the files that it extends."""
    if node is not None and not isinstance(node, Mapping):
        raise UserError(f"{where} must be a difference from the base such as {{fusion: {{name: mean}}}}, not {node!r}")
    own = dict(node or {})
    check_keys(where, own, configs.TOP_LEVEL)
    if "seed" in own:
        raise UserError(f"{where} sets 'seed'; every row has the table's 'seeds'")
    parents = own.pop("extends", None)
    return configs.merge(_files(path, where, "extends", parents) if parents else {}, own)


def _files(path: Path, where: str, key: str, value: object) -> Node:
    """Merge the config files that a key names, relative to the table."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise UserError(f"{where} needs '{key}', a config file relative to the table or a list of them, not {value!r}")
    merged: Node = {}
    for name in listed:
        file = path.parent / name
        if not file.is_file():
            others = [other.name for other in file.parent.glob("*.yaml") if other.resolve() != path]
            hint = nearest(file.name, others)
            raise UserError(f"{where}: '{key}' names '{name}', but there is no file '{file}'{hint}")
        merged = configs.merge(merged, configs.read(file))
    return merged


def _baselines(where: str, node: Node) -> tuple[str, ...]:
    """Return which baselines are added where no row is one already."""
    wanted = names(where, "baselines", node.get("baselines", [UNIMODAL, CONCAT]), empty=True)
    for name in wanted:
        if name not in (UNIMODAL, CONCAT):
            raise UserError(f"{where} has an unknown baseline '{name}'{nearest(name, (UNIMODAL, CONCAT))}")
    return wanted


def _means(where: str, node: Node, columns: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the named means, each over columns or over means that stand before it."""
    if node.get("means") is None:
        return {}
    means: dict[str, tuple[str, ...]] = {}
    for name, listed in mapping(where, "means", node["means"]).items():
        means[name] = _columns_named(f"{where}, mean '{name}'", "means", listed, [*columns, *means])
        if name in columns:
            raise UserError(f"{where}: '{name}' is both a column and a mean; name the mean otherwise")
    return means


def _own_scores(trees: Iterable[Node]) -> tuple[str, ...]:
    """Return the scores that strategies of some rows add to the headline metrics; answers in words have theirs."""
    nodes = [tree.get("fusion") or {} for tree in trees]
    used = {str(node.get("name")) for node in nodes} & set(registry.names("fusion"))
    found = {score for name in used for score in registry.describe("fusion", name).constants.get("score_names", ())}
    return (*sorted(found), *(ANSWERS if any(node.get("decode") == "generate" for node in nodes) else ()))


def _metric_of_verdicts(where: str, name: object, scores: Sequence[str]) -> str:
    """Return the name of a headline metric, which every row has."""
    if name in scores:
        raise UserError(
            f"{where}: 'metric' is '{name}', which not every strategy has, but verdicts need one that every row has; "
            f"name it in 'metrics', and by 'metric' one of {', '.join(HEADLINE)}"
        )
    return _metric(where, name, ())


def _metric(where: str, name: object, scores: Sequence[str]) -> str:
    """Return the name of a headline metric, or of a strategy's score; those of a class are not known before the data.

    Args:
        where: The table, for messages.
        name: As the yaml has it.
        scores: Those of the rows' strategies.
    """
    try:
        check_metric(str(name), further=scores)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return str(name)
