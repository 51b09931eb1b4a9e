"""Cases as tensors: what a DataLoader's workers do for each case, and how cases become a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from fusionbench.types import Batch, ModalitySpec

Open = Callable[[str, str], np.ndarray]


class Transform(Protocol):
    """What turns pictures into tensors."""

    def __call__(self, image_SHWC: np.ndarray, seed: int) -> Tensor:
        """Return (S, 3, H, W) float32."""
        ...

    def with_masks(
        self, image_SHWC: np.ndarray, masks_HW: Sequence[np.ndarray], seed: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the same, and (1, H, W) float32 for each mask of the first picture."""
        ...


@dataclass(frozen=True)
class MaskColumn:
    """One kind of mask, ready to be read.

    Attributes:
        modality: The pictures that it is drawn on.
        items: Of each case, "" where it has none.
        open: Turns an item into its decoded mask (1, H, W, 1) uint8 in {0, 1}.
    """

    modality: str
    items: Sequence[str]
    open: Callable[[str], np.ndarray]


@dataclass(frozen=True)
class CaseData:
    """All cases of a dataset, ready to be read, shared by its splits.

    Attributes:
        specs: What each modality is made of.
        cells: For each modality and case: items of pictures, token ids, or encoded columns.
        present: (N, M) bool.
        target: (N,) int64 or (N, K) float32.
        case_id: Name of each case.
        group_id: Patient of each case.
        open: Turns a modality's item into its decoded pictures (S, H, W, C) uint8.
        pad_id: Each text modality's padding token.
        masks: Kinds of masks, by name.
    """

    specs: Mapping[str, ModalitySpec]
    cells: Mapping[str, Sequence[object]]
    present: np.ndarray
    target: np.ndarray
    case_id: Sequence[str]
    group_id: Sequence[str]
    open: Open
    pad_id: Mapping[str, int]
    masks: Mapping[str, MaskColumn] = field(default_factory=dict)


class Cases(TorchDataset[Batch]):
    """One split.

    Items are asked for by ``(position, seed)``: the seed determines every random choice, so that it makes no difference
    how many workers there are and which of them reads a case.

    Args:
        data: All cases.
        rows: Rows of the split.
        transform: Turns (S, H, W, C) uint8 into (S, 3, H, W) float32, for each modality of pictures.
        train: Choose pictures and slices at random; else the first pictures, and slices in equal steps.
    """

    def __init__(self, data: CaseData, rows: np.ndarray, transform: Mapping[str, Transform], train: bool) -> None:
        self.data, self.rows, self.transform, self.train = data, rows, transform, train

    def __len__(self) -> int:
        """Return the number of cases in the split."""
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """Return one case as a batch without its first axis."""
        position, seed = key
        row, data = int(self.rows[position]), self.data
        inputs, extras = {}, dict[str, Tensor]()
        for index, (name, spec) in enumerate(data.specs.items()):
            draw = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
            inputs[name], masks = self._read(name, spec, row, bool(data.present[row, index]), draw)
            extras |= masks
        target, present = torch.as_tensor(data.target[row]), torch.from_numpy(data.present[row])
        return Batch(inputs, present, target, [data.case_id[row]], [data.group_id[row]], extras)

    def _read(self, name: str, spec: ModalitySpec, row: int, here: bool, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a modality's tensor and the extras that belong to it."""
        cell = self.data.cells[name][row]
        if spec.kind == "text":
            return torch.tensor(cell if here else [self.data.pad_id[name]], dtype=torch.int64), {}
        if spec.kind == "table":
            return (torch.as_tensor(cell) if here else torch.zeros(len(spec.columns))), {}
        columns = {mask: column for mask, column in self.data.masks.items() if column.modality == name}
        if not here:
            return torch.zeros(spec.instances, 3, spec.size, spec.size), _extras(columns, {}, spec.size)
        pictures = self._pictures(name, spec, cell, seed)
        if not columns:
            return self.transform[name](pictures, seed), {}
        drawn = {mask: column.open(column.items[row]) for mask, column in columns.items() if column.items[row]}
        flat = [mask[0, ..., 0] for mask in drawn.values()]
        tensor, moved = self.transform[name].with_masks(pictures, flat, seed)
        return tensor, _extras(columns, dict(zip(drawn, moved, strict=True)), spec.size)

    def _pictures(self, name: str, spec: ModalitySpec, cell: object, seed: int) -> np.ndarray:
        """Return the pictures of a cell that are shown, (S, H, W, C) uint8."""
        items = cell if isinstance(cell, tuple) else ()
        rng = np.random.default_rng(seed)
        if spec.kind == "slices":
            volume = self.data.open(name, items[0])
            slices: np.ndarray = volume[choose_slices(len(volume), spec.instances, rng if self.train else None)]
            return slices
        chosen = choose_images(len(items), spec.instances, rng if self.train else None)
        return join_pictures([self.data.open(name, items[i])[:1] for i in chosen])


def _extras(columns: Mapping[str, MaskColumn], masks: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """Return each mask (1, H, W), zeros where a case has none, and whether it has it, () bool."""
    none = torch.zeros(1, size, size)
    values = {name: masks.get(name, none) for name in columns}
    return values | {f"{name}/present": torch.tensor(name in masks) for name in columns}


def choose_slices(count: int, wanted: int, rng: np.random.Generator | None) -> np.ndarray:
    """Return ``wanted`` slices of ``count`` at equal steps, each moved by up to half a step if there is a generator.

    EI's rule: step = (S - 1) / n, index = round(step / 2 + i · step + U(-step / 2, step / 2)).
    """
    step = (count - 1) / wanted
    centres = step / 2 + step * np.arange(wanted)
    if rng is not None:
        centres = centres + rng.uniform(-step / 2, step / 2, wanted)
    chosen: np.ndarray = np.rint(centres).astype(int).clip(0, count - 1)
    return chosen


def choose_images(count: int, wanted: int, rng: np.random.Generator | None) -> np.ndarray:
    """Return ``wanted`` of ``count`` pictures: random ones if there is a generator, else the first; too few repeat."""
    order = np.arange(count) if rng is None else rng.permutation(count)
    return np.resize(order, wanted)


def join_pictures(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Join pictures (1, H, W, C) to (S, H, W, C); grey ones beside colour get three equal channels."""
    channels = max(picture.shape[-1] for picture in pictures)
    return np.concatenate([np.broadcast_to(picture, (*picture.shape[:-1], channels)) for picture in pictures])


def collate(pad_id: Mapping[str, int]) -> Callable[[list[Batch]], Batch]:
    """Return a function that joins cases to a batch; texts are padded to the longest among them."""
    return _Collate(pad_id)


class _Collate:
    """A class, so that workers started by spawn can receive it."""

    def __init__(self, pad_id: Mapping[str, int]) -> None:
        self.pad_id = dict(pad_id)

    def __call__(self, cases: list[Batch]) -> Batch:
        inputs = {name: self._join(name, [case.inputs[name] for case in cases]) for name in cases[0].inputs}
        return Batch(
            inputs,
            torch.stack([case.present for case in cases]),
            torch.stack([case.target for case in cases]),
            [name for case in cases for name in case.case_id],
            [name for case in cases for name in case.group_id],
            {name: torch.stack([case.extras[name] for case in cases]) for name in cases[0].extras},
        )

    def _join(self, name: str, values: list[Tensor]) -> Tensor:
        if name not in self.pad_id:
            return torch.stack(values)
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=self.pad_id[name])
