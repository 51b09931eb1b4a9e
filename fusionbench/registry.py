"""The folder is the registry: ``fusion: {name: concat}`` is the class with ``@register`` in ``fusion/concat.py``.

Components are described by reading their source, never by importing them, so that ``list``, ``show`` and the check of a
config need no torch. A component's keyword-only constructor arguments are its yaml options. A package outside the
project adds components through an entry point, e.g. in group ``fusionbench.fusion`` ``my_fusion = "package.my_fusion"``
for a module that holds one class with ``@register``.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from fusionbench.errors import UserError, nearest

KINDS = {
    "fusion": "fusion strategies",
    "encoder": "encoders",
    "adapt": "tuning methods",
    "data": "datasets",
    "optimizer": "optimizers",
    "scheduler": "learning-rate schedules",
}
_FOLDERS = {
    "fusion": "fusion",
    "encoder": "encoders",
    "adapt": "adapt",
    "data": "data",
    "optimizer": "optim/optimizers",
    "scheduler": "optim/schedulers",
}
REQUIRED = object()
T = TypeVar("T")


def register(component: T) -> T:
    """Mark a class or function as the component that its file is named after."""
    return component


@dataclass(frozen=True)
class Option:
    """One keyword-only argument of a component's constructor."""

    name: str
    annotation: str
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        """Whether the yaml must name it."""
        return self.default is REQUIRED


@dataclass(frozen=True)
class Component:
    """A component as its source describes it."""

    kind: str
    name: str
    module: str
    symbol: str
    doc: str
    options: dict[str, Option]
    constants: dict[str, Any]

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return self.doc.strip().splitlines()[0] if self.doc.strip() else ""

    def load(self) -> Any:  # noqa: ANN401 - a class or a function, by kind
        """Import the component; only now are its libraries needed."""
        return getattr(importlib.import_module(self.module), self.symbol)


def names(kind: str) -> list[str]:
    """Return the names of all components of a kind, in alphabetical order."""
    return sorted(_modules(kind))


def describe(kind: str, name: str) -> Component:
    """Return a component's description.

    Raises:
        UserError: There is no such component; names the nearest.
    """
    modules = _modules(kind)
    if name not in modules:
        raise UserError(f"unknown {kind} '{name}'{nearest(name, modules)}")
    return _describe(kind, name, *modules[name])


@cache
def _modules(kind: str) -> dict[str, tuple[str, Path]]:
    """Map each component's name to its module and source file."""
    folder = Path(__file__).parent / _FOLDERS[kind]
    package = "fusionbench." + _FOLDERS[kind].replace("/", ".")
    found = {p.stem: (f"{package}.{p.stem}", p) for p in folder.glob("*.py") if "\n@register\n" in p.read_text("utf-8")}
    for point in entry_points(group=f"fusionbench.{kind}"):
        spec = importlib.util.find_spec(point.module)
        if spec and spec.origin:
            found[point.name] = (point.module, Path(spec.origin))
    return found


@cache
def _describe(kind: str, name: str, module: str, path: Path) -> Component:
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and _is_registered(node):
            doc = inspect.cleandoc(ast.get_docstring(node) or "")
            return Component(kind, name, module, node.name, doc, _options(node), _constants(node))
    raise UserError(f"{module} has no class with @register, so it is no {kind}")


def _is_registered(node: ast.ClassDef | ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "register" for d in node.decorator_list)


def _options(node: ast.ClassDef | ast.FunctionDef) -> dict[str, Option]:
    """Read the keyword-only arguments of the constructor, or of the function itself."""
    function: ast.AST | None = node
    if isinstance(node, ast.ClassDef):
        function = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    if not isinstance(function, ast.FunctionDef):
        return {}
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return {
        argument.arg: Option(
            argument.arg,
            ast.unparse(argument.annotation) if argument.annotation else "Any",
            REQUIRED if default is None else ast.literal_eval(default),
        )
        for argument, default in pairs
    }


def _constants(node: ast.ClassDef | ast.FunctionDef) -> dict[str, Any]:
    """Read the literal class attributes, such as ``needs_all = True``."""
    constants: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            target, value = statement.target.id, statement.value
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            target, value = statement.targets[0].id, statement.value
        else:
            continue
        try:
            constants[target] = ast.literal_eval(value) if value is not None else None
        except ValueError:
            continue
    return constants


@cache
def signature(module: str, symbol: str) -> dict[str, Option]:
    """Return the keyword-only constructor arguments of a class of this package, read from its source."""
    relative = module.removeprefix("fusionbench.").replace(".", "/") + ".py"
    tree = ast.parse((Path(__file__).parent / relative).read_text("utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == symbol)
    return _options(node)
