"""A value of a config against the annotation of the option that takes it."""

from __future__ import annotations

import collections.abc
import typing
from typing import Any

from fusionbench.errors import UserError, nearest

_LEAST = {
    "seed": 0,
    "data.batch_size": 1,
    "data.num_workers": 0,
    "data.text_length": 3,
    "trainer.max_epochs": 1,
    "trainer.patience": 0,
    "trainer.accumulate": 1,
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.limit_train_batches": 1,
    "tracking.log_every": 1,
}
_ANNOTATION_NAMES = {**vars(collections.abc), **{n: getattr(typing, n) for n in ("Any", "Literal")}}


def typed(where: str, annotation: str, value: object) -> Any:  # noqa: ANN401 - the annotated type
    """Return the value if it has the annotated type, an int where a float is wanted made one.

    Args:
        where: The option with its dots.
        annotation: As it is written.
        value: What the config has.

    Raises:
        UserError: It is of another type, or less than it can be.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    kind = eval(annotation, dict(_ANNOTATION_NAMES))  # our own source text, or that of an installed entry point
    adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(strict=True))
    try:
        checked = adapter.validate_python(value)
    except ValidationError:
        hint = f"; write {where}=[{value}]" if isinstance(value, str) and "Sequence[str]" in annotation else ""
        if typing.get_origin(kind) is typing.Literal and isinstance(value, str):
            hint = nearest(value, typing.get_args(kind))
        raise UserError(f"'{where}' must be {annotation}, not {value!r}{hint}") from None
    if where in _LEAST and checked is not None and checked < _LEAST[where]:
        raise UserError(f"'{where}' must be at least {_LEAST[where]}, not {checked}")
    return checked
