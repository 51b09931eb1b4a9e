"""Where a result comes from: git, versions, the machine, and the source of the components."""

from __future__ import annotations

import hashlib
import inspect
import platform
import subprocess
from collections.abc import Iterable
from importlib import import_module, metadata
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


def source_digest(modules: Iterable[str]) -> str:
    """Return a hash of the source of some modules: the code version of the components that a run is made of."""
    digest = hashlib.sha256()
    for name in sorted(set(modules)):
        digest.update(inspect.getsource(import_module(name)).encode())
    return digest.hexdigest()[:16]
