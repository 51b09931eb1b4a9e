"""A checkpoint of transformers whose tensors are read one by one, by name, from a folder or from the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from zipfile import is_zipfile

import torch
from torch import Tensor

from fusionbench.encoders.weights import hub_failed
from fusionbench.errors import UserError
from fusionbench.layers.deferred import held_as

_FILES = ("model.safetensors", "pytorch_model.bin")
_HEAD = "lm_head."  # stands beside the decoder
Wanted = Mapping[str, tuple[str, torch.Size]]


class Checkpoint:
    """Config and weights as transformers saves them; of parts listed in an index, only those needed are fetched.

    Args:
        name: What the config calls it; with no folder, the model's id on the hub.
        folder: Where it lies; None: on the hub.
    """

    def __init__(self, name: str, folder: Path | None) -> None:
        self.name, self.folder = name, folder

    def file(self, name: str) -> Path | None:
        """Return where one of its files lies, fetched if need be, or None if it has no such file.

        Raises:
            UserError: The hub does not give it.
        """
        path = (self.folder or _fetched(self.name, name)) / name
        return path if path.is_file() else None

    def read(self, wanted: Wanted, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return tensors by new name, in ``dtype``; what a file has in it already stays mapped and takes no memory.

        Args:
            wanted: New name to the name within the decoder (without ``model.`` before it), or of its head
                (``lm_head.``), and the shape.
            dtype: Whatever the file holds, they are turned into this.

        Raises:
            UserError: Tensors are missing or have another shape, which are named, or a file is damaged.
        """
        prefix = "model." if any(name.startswith("model.") for name in self._file_of) else ""
        names = {key: name if name.startswith(_HEAD) else prefix + name for key, (name, _) in wanted.items()}
        tensors = self._tensors({name for name in names.values() if name in self._file_of})
        missing = [name for name in names.values() if name not in tensors]
        wrong = [
            f"{name} is {_sizes(tensors[name].shape)} instead of {_sizes(wanted[key][1])}"
            for key, name in names.items()
            if name in tensors and tensors[name].shape != wanted[key][1]
        ]
        if missing or wrong:
            faults = _fault(missing, "missing") + _fault(wrong, "not of the shape that config.json says")
            raise UserError(f"the weights of '{self.name}' do not fit: {' and '.join(faults)}")
        return {key: held_as(tensors[name], dtype) for key, name in names.items()}

    @cached_property
    def _file_of(self) -> dict[str, str]:
        """Which file each tensor lies in."""
        for single in _FILES:
            index = self.file(f"{single}.index.json")
            if index is not None:
                with _told(index):
                    return dict(json.loads(index.read_text("utf-8"))["weight_map"])
            path = self.file(single)
            if path is not None:
                with _told(path):
                    return dict.fromkeys((name for name, _ in _content(path, None)), single)
        raise UserError(f"'{self.name}' holds no weights: there is neither {' nor '.join(_FILES)} nor an index of them")

    def _tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        by_file: dict[str, set[str]] = {}
        for name in names:
            by_file.setdefault(self._file_of[name], set()).add(name)
        tensors: dict[str, Tensor] = {}
        for file, inside in by_file.items():
            path = self.file(file)
            if path is None:
                raise UserError(f"'{self.name}' lacks its part '{file}', which the index of its weights names")
            with _told(path):
                tensors.update((name, value) for name, value in _content(path, inside) if value is not None)
        return tensors


def _fetched(model: str, name: str) -> Path:
    """Return the hub's folder of a model with a file in it, if the model has the file."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    try:
        return Path(snapshot_download(model, allow_patterns=[name]))
    except GatedRepoError:
        raise UserError(
            f"the weights of '{model}' are gated and your account has no access: accept their licence on the model's "
            "page, log in by 'hf auth login', or give a local folder by encoder.weights=PATH"
        ) from None
    except Exception as error:  # the hub client raises many kinds
        raise hub_failed(model, error) from None


def _content(path: Path, names: set[str] | None) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the names of a file's tensors; with ``names``, those alone and their values."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            for name in file.keys() if names is None else sorted(names):
                yield name, None if names is None else file.get_tensor(name)
    else:
        is_mappable = is_zipfile(path)  # torch before 1.6 wrote plain pickles
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
        for name in sorted(state if names is None else names):
            yield name, None if names is None else state[name]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell of a damaged file in one sentence."""
    try:
        yield
    except Exception as error:  # json, torch and safetensors each have their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"'{path}' could not be read: {reason}; fetch it again") from None


def _sizes(shape: torch.Size) -> str:
    return " x ".join(str(size) for size in shape)


def _fault(names: list[str], what: str) -> list[str]:
    """Say how many tensors have a fault, and which the first are."""
    if not names:
        return []
    more = ", ..." if len(names) > 2 else ""
    return [f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {what} ({', '.join(names[:2])}{more})"]
