"""Features of frozen backbones, computed once for all runs: which there can be, what names them, how they are filled.

What a frozen backbone without adapters makes of an input depends on the input alone. So each modality's inputs go
through it once, in the order of the case table and in batches of one size, whatever the run's own; all runs read that
file, the one that fills it included. A result therefore does not depend on which run came first, or was resumed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from fusionbench.adapt.feature_table import FeatureTable, Layout, compute
from fusionbench.data.cases import Cases, collate
from fusionbench.data.module import FusionData
from fusionbench.data.sampling import EvalSampler
from fusionbench.data.transforms import ImageTransform
from fusionbench.encoders.base import Encoder, Tokens
from fusionbench.types import Batch

BATCH = 16
"""Cases that go through a backbone together when a table is filled; part of its identity."""
_LIBRARIES = ("torch", "timm", "transformers")  # whose kernels and layers a feature goes through


@dataclass(frozen=True)
class Setting:
    """What of a run, besides data and backbone, enters a feature's last bits.

    Args:
        code: Digest of the source that data and features go through.
        precision: Lightning's name, and whose: ZeRO holds in bfloat16 what DDP only computes products in.
        prepare: Puts a batch on the device in the run's precision.
        context: What the run's forward passes are made in, e.g. autocast.
    """

    code: str
    precision: str
    prepare: Callable[[Batch], Batch]
    context: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Part:
    """The cases of one modality whose features are worth storing.

    Args:
        source: The run's data.
        name: The modality.
    """

    source: FusionData
    name: str

    @cached_property
    def trains(self) -> bool:
        """Whether training sees the same inputs again: nothing about them is drawn at random."""
        spec = self.source.problem.modalities[self.name]
        if not spec.is_image:
            return True
        if spec.kind == "slices" or ImageTransform(spec.size, True, **self.source.transforms).is_random:
            return False
        return all(len(self.source.data.cells[self.name][row]) <= spec.instances for row in self._rows("train"))  # type: ignore[arg-type]

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows of the case table that have the modality, the training cases left out where they never come again.

        None of a table, whose encoders have no pretrained weights and are trained whole.
        """
        if self.source.problem.modalities[self.name].kind == "table":
            return np.empty(0, dtype=np.int64)
        return np.sort(np.concatenate([self._rows(s) for s in ("train", "val", "test") if s != "train" or self.trains]))

    def _rows(self, split: str) -> np.ndarray:
        data = self.source.data
        has = data.present[:, list(data.specs).index(self.name)]
        return np.flatnonzero(has & (self.source.table["split"] == split).to_numpy())

    @cached_property
    def layout(self) -> Layout:
        """How the inputs look."""
        spec, data = self.source.problem.modalities[self.name], self.source.data
        if spec.kind == "text":
            longest = max(len(data.cells[self.name][row]) for row in self.rows)  # type: ignore[arg-type]
            return Layout(longest, data.pad_id[self.name])
        return Layout(3 * spec.size**2)

    def content(self) -> list[object]:
        """Return what the inputs are made of: spec, normalisation, and each case's token ids or digests of files."""
        spec, cells = self.source.problem.modalities[self.name], self.source.data.cells[self.name]
        told = [cells[row] for row in self.rows]
        if spec.is_image:
            told = [[self.source.dataset.digest(item) for item in cell] for cell in told]  # type: ignore[attr-defined]
        return [asdict(spec), self.source.transforms.get("normalize"), self.source.data.pad_id.get(self.name), told]

    def count(self) -> int:
        """Return the number of inputs, the absent one included."""
        spec = self.source.problem.modalities[self.name]
        return len(self.rows) * (spec.instances if spec.is_image else 1) + 1

    def batches(self, setting: Setting) -> Iterator[Tensor]:
        """Yield inputs as a strategy sees them; the last is what stands for an absent one."""
        spec, data = self.source.problem.modalities[self.name], self.source.data
        column = list(data.specs).index(self.name)
        alone = replace(
            data,
            specs={self.name: spec},
            cells={self.name: data.cells[self.name]},
            present=data.present[:, column : column + 1],
        )
        transform = {self.name: ImageTransform(spec.size, False, **self.source.transforms)} if spec.is_image else {}
        loader: DataLoader[Batch] = DataLoader(
            Cases(alone, self.rows, transform, train=False),
            batch_size=BATCH,
            sampler=EvalSampler(len(self.rows), 0, 1),
            num_workers=self.source.num_workers,
            collate_fn=collate(data.pad_id),
        )
        for batch in loader:
            yield self._inputs(setting.prepare(batch).inputs[self.name])
        yield torch.zeros_like(self._inputs(setting.prepare(batch).inputs[self.name])[:1])

    def _inputs(self, value: Tensor) -> Tensor:
        if self.layout.pad_id is not None:
            return pad(value, (0, self.layout.length - value.shape[1]), value=self.layout.pad_id)
        return value.flatten(0, 1)


def table(
    folder: Path, key: str, encoder: Encoder, part: Part, setting: Setting, view: int = 0
) -> tuple[FeatureTable, bool]:
    """Open the table of a frozen encoder and a modality, filled first if it is not there; say whether it was.

    Two processes that want the same one take turns, so the second finds it filled.

    Args:
        folder: Where tables are kept.
        key: Name of the encoder's class and options.
        encoder: In evaluation mode.
        part: The cases.
        setting: What else enters.
        view: Which of the encoder's views; one without adapters.

    Raises:
        TooLarge: It would take more room than allowed.
    """
    path = folder / f"{part.name}-{identity(key, encoder, part, setting)}.safetensors"
    with _alone(path.with_suffix(".lock")):
        try:
            return FeatureTable.read(path), True
        except (OSError, SafetensorError):  # not there, or damaged
            # A loader draws a seed, which training must not notice.
            with torch.random.fork_rng(devices=[]), _all_threads():
                made = compute(_encode(encoder, setting, view), part.batches(setting), part.layout, part.count())
        made.write(path)
    return FeatureTable.read(path), False


def _encode(encoder: Encoder, setting: Setting, view: int) -> Callable[[Tensor], Tokens]:
    def encode(inputs: Tensor) -> Tokens:
        with setting.context(), encoder.selector.select((view,)):
            return encoder.encode(encoder.embed(inputs), views=(view,))

    return encode


def identity(key: str, encoder: Encoder, part: Part, setting: Setting) -> str:
    """Return the name of all that a table's numbers depend on, last bits included; what is trained is other views'."""
    device = next(encoder.parameters()).device
    machine = (
        [torch.cuda.get_device_name(device), torch.version.cuda, torch.backends.cudnn.allow_tf32]
        if device.type == "cuda"
        else [platform.machine(), torch.backends.cpu.get_cpu_capability(), threads()]
    )
    machine += [torch.get_float32_matmul_precision(), *(version(library) for library in _LIBRARIES)]
    told = [key, setting.code, setting.precision, BATCH, device.type, *machine, part.content()]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    for name, value in sorted((n, v) for n, v in encoder.state_dict().items() if n not in trained):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:20]


def threads() -> int:
    """Return how many threads fill a table: those of the machine, whatever share of it a worker of a sweep has.

    Sums of floats depend on their number, and runs of any ``--parallel`` read the same table.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(given) if given.isdecimal() and int(given) else cores


@contextmanager
def _all_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes out; the lock ends with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
