"""Lets torchvision import beside a torch without CUDA.

The package index's torchvision wheel links CUDA libraries; beside a CPU build of torch its extension does not load, and
``import torchvision`` then fails because it registers fake kernels for two operators that nobody declared. Declaring
their schemas first is enough. Nothing happens where the extension loads; ``torchvision.ops.nms`` and ``torchvision.io``
stay unavailable where it does not. The import of torch is put off until torchvision itself is asked for.
"""

import ctypes
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []


class _Finder(MetaPathFinder):
    """Declares the schemas just before torchvision is found; stays, since some libraries probe before they import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and not _declared:
            _declare()
        return None


def _declare() -> None:
    spec = PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    if torch.version.cuda is not None or _extension_loads(Path(spec.origin).parent):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)


def _extension_loads(folder: Path) -> bool:
    for extension in folder.glob("_C*.so"):
        try:
            ctypes.CDLL(str(extension))
        except OSError:
            return False
    return True


def guard() -> None:
    """Install the finder once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
