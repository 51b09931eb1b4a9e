"""Object arrays in ``.npy`` files, which are pickles, read without letting them run any code.

Only numpy's own reconstruction of arrays and scalars is looked up; containers, numbers and text need no look-up at all.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fusionbench.errors import UserError


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``codecs.encode``, by which old pickles write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as '{encoding}'")
    return text.encode(encoding)


_reconstruct: Any = np.empty(0).__reduce__()[0]
_scalar: Any = np.float64(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every name but numpy's own."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Return what ``module.name`` may stand for.

        Raises:
            pickle.UnpicklingError: Anything else than plain data.
        """
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for '{module}.{name}', which is no plain data, and was not run")
        return _ALLOWED[module, name]


def read_plain_npy(path: Path) -> Any:  # noqa: ANN401 - whatever was pickled
    """Return the object in a ``.npy`` file that ``numpy.save`` made of a dict or list.

    Raises:
        UserError: The file cannot be read, holds something else than plain data, or no object.
    """
    try:
        with path.open("rb") as file:
            if _dtype(file) != np.dtype(object):
                raise ValueError("it holds an array of numbers or text, no object")
            array = _PlainUnpickler(file, encoding="latin1").load()
        return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else array
    except Exception as error:  # damaged pickles raise whatever they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read '{path}' as plain data saved by numpy: {reason}") from error


def _dtype(file: BinaryIO) -> np.dtype[Any]:
    """Read a file's header and return the type of its array."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)[2]
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)[2]
    raise ValueError(f"its format {version[0]}.{version[1]} is unknown")
