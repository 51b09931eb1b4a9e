"""Checks of a table's yaml: each value's shape, with a sentence for what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fusionbench.config import Node
from fusionbench.errors import UserError, nearest
from fusionbench.metrics import HEADLINE, PER_CLASS

PARAMETERS = "parameters"
Printed = float | tuple[float, float]


def check_keys(where: str, node: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse a key that is none of those known."""
    for key in node:
        if key not in set(known):
            raise UserError(f"{where} has an unknown key '{key}'{nearest(str(key), known)}")


def mapping(where: str, key: str, value: object) -> dict[str, Any]:
    """Return a mapping from names, with at least one."""
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{where} needs '{key}' as {{name: ...}} with at least one name, not {value!r}")
    for name in value:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: the name {name!r} in '{key}' must be text; put it in quotes")
    return dict(value)


def names(where: str, key: str, value: object, empty: bool = False) -> tuple[str, ...]:
    """Return a list of different words."""
    right = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if not right or len(set(value)) != len(value) or not (value or empty):  # type: ignore[arg-type, call-overload]
        raise UserError(f"{where}: '{key}' must be a list of different names, not {value!r}")
    return tuple(value)  # type: ignore[arg-type]


def numbers(where: str, key: str, value: object) -> tuple[int, ...]:
    """Return a list of different whole numbers from 0 up."""
    right = isinstance(value, list) and value and all(type(number) is int and number >= 0 for number in value)
    if not right or len(set(value)) != len(value):  # type: ignore[arg-type, call-overload]
        raise UserError(f"{where}: '{key}' must be a list of different whole numbers from 0 up, not {value!r}")
    return tuple(value)  # type: ignore[arg-type]


def floats(where: str, key: str, value: object) -> float:
    """Return a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{where}: '{key}' must be a number from 0 to below 1, not {value!r}")
    return float(value)


def published_of(
    where: str, node: object, rows: Iterable[str], columns: Iterable[str], further: Iterable[str] = ()
) -> dict[str, dict[str, dict[str, Printed]]]:
    """Return what a paper printed, checked against the names of rows and columns.

    ``parameters`` may stand beside the columns; it is then kept with ``mean``. A score may be a range ``[low, high]``,
    where a paper prints but that. ``further`` are the strategies' scores.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"{where}: 'published' must be {{row: {{column: {{metric: value}}}}}}, not {node!r}")
    check_keys(f"{where}: 'published'", node, rows)
    found: dict[str, dict[str, dict[str, Printed]]] = {}
    for row, printed in node.items():
        here = f"{where}: 'published' of row '{row}'"
        own: Node = dict(mapping(here, "published", printed))
        if PARAMETERS in own:
            own["mean"] = {**own.get("mean", {}), PARAMETERS: own.pop(PARAMETERS)}
        check_keys(here, own, columns)
        found[row] = {column: _values(f"{here}, '{column}'", values, further) for column, values in own.items()}
    return found


def _values(where: str, node: object, further: Iterable[str]) -> dict[str, Printed]:
    """Return printed values by metric; a class's metric is ``AP/<class>``, whose class only the data know."""
    values, known = mapping(where, "values", node), (*HEADLINE, *further, PARAMETERS)
    for name in values:
        if name not in known and name.partition("/")[0] not in PER_CLASS:
            raise UserError(f"{where} has an unknown metric '{name}'{nearest(name, known)}")
    return {name: _printed(f"{where}: '{name}'", value, name == PARAMETERS) for name, value in values.items()}


def _printed(where: str, value: object, count: bool) -> Printed:
    """Return a printed number, or the two ends of a range."""
    if not isinstance(value, list):
        return _number(where, value, count)
    if count or len(value) != 2:
        raise UserError(f"{where} must be a number{'' if count else ' or a range [low, high]'}, not {value!r}")
    low, high = (_number(where, end, count) for end in value)
    if low > high:
        raise UserError(f"{where} must be a range [low, high], not {value!r}")
    return low, high


def _number(where: str, value: object, count: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where} must be a number, not {value!r}")
    if not count and not 0 <= value <= 1:
        meant = f"; did you mean {value / 100:g}?" if 1 < value <= 100 else ""
        raise UserError(f"{where} must be a fraction from 0 to 1, not {value:g}{meant}")
    return float(value)
