"""transformers' configs of models with random weights, out of an encoder node's ``config``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fusionbench.errors import UserError, check_number, nearest


def model_type(options: Mapping[str, Any], example: str) -> Any:  # noqa: ANN401 - whatever stands in the config
    """Return the kind of model that a config is of.

    Args:
        options: The node's ``config``.
        example: A kind, for the sentence.

    Raises:
        UserError: It names none.
    """
    kind = options.get("model_type")
    if kind is None:
        raise UserError(f"random weights need 'encoder.config', e.g. {{model_type: {example}, hidden_size: 64, ...}}")
    return kind


def random_config(options: Mapping[str, Any], sizes: Sequence[str]) -> Any:  # noqa: ANN401 - a transformers config
    """Return a config of transformers.

    Args:
        options: The node's ``config``, with a ``model_type`` that transformers knows.
        sizes: Keys whose value must be at least 1, as far as that kind has them.

    Raises:
        UserError: It has a key that its kind does not know, or a value that cannot be.
    """
    from transformers import CONFIG_MAPPING

    kind = options["model_type"]
    of_kind: Any = CONFIG_MAPPING[kind]
    known = {*of_kind().to_dict(), *of_kind.attribute_map}
    for key in options:
        if key not in known:
            raise UserError(f"a {kind} has no 'encoder.config.{key}'{nearest(str(key), known)}")
    with makes(kind):
        config = of_kind(**{key: value for key, value in options.items() if key != "model_type"})
    for name in sizes:
        check_number(f"encoder.config.{name}", getattr(config, name, 1), least=1)
    return config


@contextmanager
def makes(kind: str) -> Iterator[None]:
    """Tell in one sentence of a config that makes no model."""
    try:
        yield
    except Exception as error:  # transformers, the hub client and torch each have their own
        raise UserError(f"'encoder.config' makes no {kind}: {' '.join(str(error).split())[:200]}") from None
