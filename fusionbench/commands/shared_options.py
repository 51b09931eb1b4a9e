"""What the options mean that every dataset and every optimizer has, read from the docstring beside their signature."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from fusionbench import config

_WHERE = {
    "data": ("fusionbench.data.module", "FusionData"),
    "optimizer": ("fusionbench.optim.groups", "parameter_groups"),
}
_AROUND = {"data": config.data_options, "optimizer": config.optimizer_options}


def described(kind: str, own: Collection[str]) -> str:
    """Return the entries of the Args section of a kind's shared options, nothing for a kind without any.

    The source is read, not imported, since ``show`` needs no torch. ``root`` is left to the dataset, which knows what
    lies in it.

    Args:
        kind: The kind of component.
        own: Options that the component has itself, which its own docstring tells.
    """
    if kind not in _WHERE:
        return ""
    module, symbol = _WHERE[kind]
    spec = find_spec(module)
    tree = ast.parse(Path(str(spec and spec.origin)).read_text("utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == symbol)
    told = _entries(inspect.cleandoc(ast.get_docstring(node) or ""))
    return "\n".join(told[name] for name in _AROUND[kind]() if name in told and name not in own)


def _entries(doc: str) -> dict[str, str]:
    """Return each entry of a Google docstring's Args section, continuation lines included."""
    section = doc.partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = re.split(r"^(?=    \w+: )", section, flags=re.MULTILINE)
    return {entry.split(":", 1)[0].strip(): entry.rstrip() for entry in entries if entry.strip()}
