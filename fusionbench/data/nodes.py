"""The yaml node of one modality of a csv: which keys its kind has, and of which type they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from fusionbench.errors import UserError, nearest
from fusionbench.types import Kind

KEYS: dict[str, tuple[str, ...]] = {
    "image": ("column", "instances", "size", "masks"),
    "slices": ("column", "instances", "size"),
    "text": ("column",),
    "table": ("column", "columns", "prefix"),
}


def check_node(name: str, node: object) -> None:
    """Check what a modality's node says, before the csv is read.

    Raises:
        UserError: The node is no mapping, its kind or a key is unknown, or a value is of another type.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"modality '{name}' must be {{kind: ..., column: ...}}, not {node!r}")
    kind = node.get("kind")
    if kind is None:
        raise UserError(f"modality '{name}' has no kind: state one of {', '.join(get_args(Kind))}")
    if not isinstance(kind, str) or kind not in KEYS:
        raise UserError(f"modality '{name}' is of unknown kind '{kind}'{nearest(str(kind), KEYS)}")
    for key, value in node.items():
        if key == "kind":
            continue
        if key not in KEYS[kind]:
            raise UserError(f"modality '{name}' of kind '{kind}' has no key '{key}'{nearest(str(key), KEYS[kind])}")
        _check_value(name, key, value)
    if kind == "table" and len(node) != 2:
        raise UserError(f"table '{name}' must have exactly one of column, columns and prefix")
    if kind != "table" and "column" not in node:
        raise UserError(f"modality '{name}' has no column: name the csv's column that it lies in")


def _check_value(name: str, key: str, value: Any) -> None:  # noqa: ANN401 - whatever the yaml holds
    if key == "masks":
        wanted, right = "{name of the mask: the csv's column that it lies in}", _names_columns(value)
    elif key in ("instances", "size"):
        wanted, right = "a whole number of at least 1", type(value) is int and value >= 1
    elif key == "columns":
        wanted, right = "a list of the csv's columns, each as text", isinstance(value, str) or _are_words(value)
    else:
        wanted, right = "text, in quotes if it is a number", isinstance(value, str)
    if not right:
        raise UserError(f"'{key}' of modality '{name}' must be {wanted}, not {value!r}")


def _names_columns(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(word, str) for pair in value.items() for word in pair)


def _are_words(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(word, str) for word in value)
