"""Where a result comes from: git, versions, the machine, and the source of the components."""

from __future__ import annotations

import ast
import hashlib
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fusionbench import __version__

_PACKAGES = (
    *("torch", "lightning", "transformers", "timm", "torchmetrics", "peft", "mlflow", "albumentations"),
    *("numpy", "pandas", "scikit-learn", "safetensors"),
)


def git() -> dict[str, str]:
    """Return commit and dirtiness of the code's checkout; ``unknown`` where it is installed without one."""
    root = Path(__file__).parent
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return {"git.commit": "unknown", "git.dirty": "unknown"}
    return {
        "mlflow.source.git.commit": commit,
        "git.commit": commit,
        "git.dirty": str(bool(_git(root, "status", "--porcelain"))).lower(),
    }


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def environment() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result can depend on, and the device."""
    import torch

    versions = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "fusionbench": __version__,
        "python": platform.python_version(),
        "platform": platform.system(),
        "device": device,
        "threads": str(torch.get_num_threads()),
        **versions,
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def source_digest(modules: Iterable[str], follow: Iterable[str] = ()) -> str:
    """Return a hash of the code of some modules and of what they import: the code version that a result is of.

    Comments, docstrings and layout are no code. Modules are read, not imported.

    Args:
        modules: Dotted names.
        follow: Packages into which imports are followed, e.g. the layers that components share.
    """
    inside = tuple(f"{package}." for package in follow)
    left, seen = sorted(set(modules)), set[str]()
    while left:
        name = left.pop()
        seen.add(name)
        left += [found for found in _code(name)[1] if found.startswith(inside) and found not in seen]
    return hashlib.sha256("".join(f"{name} {_code(name)[0]}\n" for name in sorted(seen)).encode()).hexdigest()[:16]


@cache
def _code(name: str) -> tuple[str, tuple[str, ...]]:
    """Return a hash of a module's code and the names of the modules that it imports."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return "", ()
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    there = tuple(sorted(found for found in set(imported) if _is_module(found)))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), there


@cache
def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, AttributeError, ValueError):  # its parent is a module, or is not there
        return False
