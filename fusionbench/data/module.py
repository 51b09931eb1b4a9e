"""FusionData, the one DataModule: from a dataset's case table to batches of the chosen modalities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from fusionbench.data.base import Dataset
from fusionbench.data.caches import ImageCaches
from fusionbench.data.cases import CaseData, Cases, collate
from fusionbench.data.copies import Contents, case_contents
from fusionbench.data.gate import check_allow, examine
from fusionbench.data.masks import mask_contents, read_masks
from fusionbench.data.options import choose_modalities
from fusionbench.data.sampling import EpochSampler, EvalSampler
from fusionbench.data.standardised import require_own_statistics
from fusionbench.data.tables import TableEncoder
from fusionbench.data.texts import TextReader
from fusionbench.data.transforms import ImageTransform
from fusionbench.data.validate import validate_table
from fusionbench.data.workers import heed_parent_alone
from fusionbench.errors import UserError
from fusionbench.types import Batch, Problem, Split, Tokenizer

__all__ = ["FusionData", "choose_modalities"]


class FusionData(L.LightningDataModule):
    """Reads a dataset once and serves its splits.

    Whatever is learned from data (a table's means, class frequencies) is learned from the training cases alone.
    Training order and augmentation depend on the seed, the epoch and the case, never on the number of workers.

    Args:
        dataset: The case table.
        tokenizers: The tokenizer of each text modality's encoder.
        seed: Of sampling and augmentation.
        fitted: What ``fitted()`` of the training run returned; given for prediction, where nothing may be learned.
        modalities: Which modalities to use, in this order; null: all that the dataset offers.
        batch_size: Cases in a batch, over all devices together.
        num_workers: Processes that read ahead; 0: none.
        sampling: ``balanced`` repeats each class up to the largest, as EI does; ``shuffle`` takes each case once.
        on_unreadable: ``stop`` names the damaged file before training; ``missing`` treats it as a missing modality.
        transforms: Options of the image transforms, e.g. ``{normalize: imagenet, rotate: 0}``.
        text: What is read of texts, e.g. ``{content: label_free}``; contents are full, findings, label_free, shuffled
            and shuffled_words.
        text_length: Longest text in tokens; the rest is cut off.
        masks: Which masks to read, e.g. ``[vessels]``; null: none.
        cache: Folder of decoded pictures; null: ``images`` in ``$FUSIONBENCH_HOME``.
        allow: Leaks between splits that are let through with a warning: ``copies``, ``near_duplicates``,
            ``statistics``, ``val_is_test``.

    Attributes:
        allowed: The words of ``allow`` without which these data would have been refused.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizers: Mapping[str, Tokenizer],
        seed: int,
        fitted: Mapping[str, Any] | None = None,
        *,
        modalities: Sequence[str] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        sampling: Literal["balanced", "shuffle"] = "balanced",
        on_unreadable: Literal["stop", "missing"] = "stop",
        transforms: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        text_length: int = 256,
        masks: Sequence[str] | None = None,
        cache: str | None = None,
        allow: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.dataset, self.tokenizers, self.seed = dataset, tokenizers, seed
        self.texts = TextReader(**(text or {}), tokenizers=tokenizers, length=text_length)
        self.batch_size, self.num_workers, self.sampling = batch_size, num_workers, sampling
        self.on_unreadable, self.transforms = on_unreadable, dict(transforms or {})
        self.cache = Path(cache) if cache else None
        self.notes: list[str] = []
        self.allow, self.allowed = check_allow(allow), tuple[str, ...]()
        self.predict_split: Split | None = "test"
        self._fitted = fitted
        self._specs, self._masks = choose_modalities(dataset, modalities), masks
        self._read()

    def _read(self) -> None:
        """Read table and cells; nothing of this is done again in ``setup``."""
        predicting = self._fitted is not None
        ImageTransform(1, train=True, **self.transforms)  # refuses an option out of range before any file is read
        table = self.dataset.cases()
        findings = validate_table(self.dataset, table, need_labels=not predicting, modalities=list(self._specs))
        table, missing = self.texts.read(self.dataset, table, self._specs)
        self.notes += [*self.dataset.notes, *(finding.message for finding in findings), *missing]
        cells = self._image_cells(table)
        cells |= {n: table[n].tolist() for n, s in self._specs.items() if not s.is_image}
        has = np.array([[_is_there(c) for c in cells[name]] for name in self._specs]).T.reshape(len(table), -1)
        table, cells = self._drop_empty(table, cells, has)
        self.table, contents = table, case_contents(self.dataset, cells)
        masks, lost = read_masks(self.dataset, table, cells, self._masks, self.cache, self.on_unreadable)
        self.notes += lost
        present = has[has.any(axis=1)]
        if not predicting:
            self._check_training(present)
            self._pass_gate(contents, cells)
        self.tables = self._fit_tables(cells, present)
        target = self._targets()
        self.fingerprint = self._fingerprint(mask_contents(self.dataset, contents, masks), target)
        self.data = CaseData(
            self._specs,
            {name: self._encode(name, values) for name, values in cells.items()},
            present,
            target,
            table["case_id"].astype(str).tolist(),
            table["group_id"].astype(str).tolist(),
            self._images.open,
            {name: tokenizer.pad_id for name, tokenizer in self.tokenizers.items()},
            masks,
        )
        self.problem = Problem(
            dict(self._specs), self.dataset.classes, self.dataset.multilabel, complete=bool(present.all())
        )

    def _image_cells(self, table: pd.DataFrame) -> dict[str, list[Any]]:
        """Return each picture cell's items that are there and can be read, decoded into the cache."""
        cells = {n: [tuple(c or ()) for c in table[n]] for n, s in self._specs.items() if s.is_image}
        self._images = ImageCaches(self.dataset, self.cache)
        for name, values in cells.items():
            items = dict.fromkeys(item for cell in values for item in cell)
            there = [item for item in items if self.dataset.exists(item)]
            good = self._images.prepare(name, there, self._specs[name].size, self.on_unreadable)
            cells[name] = [tuple(item for item in cell if item in good) for cell in values]
            lost = len(items) - len(good)
            if lost:
                self.notes.append(f"{lost} of {len(items)} files of '{name}' are missing or unreadable")
            if items and not good:
                first = next(iter(items))
                raise UserError(f"none of the {len(items)} files of modality '{name}' is there, e.g. '{first}'")
        return cells

    def _drop_empty(
        self, table: pd.DataFrame, cells: dict[str, list[Any]], has: np.ndarray
    ) -> tuple[pd.DataFrame, dict[str, list[Any]]]:
        keep: np.ndarray = np.asarray(has.any(axis=1))
        self.left_out = table.loc[~keep, ["case_id", "group_id", "split"]].reset_index(drop=True)
        if not keep.any():
            raise UserError(f"no case has any of the modalities {', '.join(self._specs)}")
        if not keep.all():
            self.notes.append(f"{(~keep).sum()} of {len(keep)} cases have none of {', '.join(self._specs)}: left out")
        kept = {name: [v for v, k in zip(values, keep, strict=True) if k] for name, values in cells.items()}
        return table.loc[keep].reset_index(drop=True), kept

    def _check_training(self, present: np.ndarray) -> None:
        train = (self.table["split"] == "train").to_numpy()
        for index, name in enumerate(self._specs):
            if not present[train, index].any():
                raise UserError(f"no training case has the modality '{name}'; leave it out of data.modalities")

    def _pass_gate(self, contents: Contents, cells: Mapping[str, list[Any]]) -> None:
        """Refuse what lets the model see what it is scored on, unless it is allowed."""
        findings = examine(self.dataset, self.table, contents, self._images, cells, self.allow)
        for finding in findings:
            if finding.severity == "error":
                raise UserError(finding.message)
        self.notes += [finding.message for finding in findings]
        self.allowed = tuple(dict.fromkeys(finding.allowed for finding in findings if finding.allowed))

    def _fit_tables(self, cells: Mapping[str, list[Any]], present: np.ndarray) -> dict[str, TableEncoder]:
        """Learn each table's encoding from the training cases, or take the training run's."""
        encoders = {}
        train = (self.table["split"] == "train").to_numpy()
        for index, (name, spec) in enumerate(self._specs.items()):
            if spec.kind != "table":
                continue
            if self._fitted is not None:
                encoders[name] = TableEncoder(self._fitted["tables"][name])
            else:
                rows = [cells[name][i] for i in np.flatnonzero(train & present[:, index])]
                encoders[name] = TableEncoder.fit(spec.columns, rows)
            self._specs[name] = replace(spec, columns=encoders[name].names)
        return encoders

    def _encode(self, name: str, values: list[Any]) -> Sequence[object]:
        """Turn texts into token ids and table rows into columns; pictures stay items."""
        kind = self._specs[name].kind
        if kind == "text":
            ids, notes = self.texts.tokens(name, values)
            self.notes += notes
            return ids
        if kind == "table":
            return [self.tables[name](v) if _is_there(v) else None for v in values]
        return values

    def _targets(self) -> np.ndarray:
        if self.dataset.multilabel:
            return self.table[list(self.dataset.classes)].fillna(-1).to_numpy(dtype=np.float32, copy=True)
        return self.table["label"].fillna(-1).to_numpy(dtype=np.int64, copy=True)

    def _fingerprint(self, contents: Contents, target: np.ndarray) -> str:
        """Hash what a result depends on: cases, groups, splits, targets and the content of every cell."""
        digest = hashlib.sha256(f"{type(self.dataset).__name__} {self.dataset.version} {self.dataset.classes}".encode())
        for i, row in enumerate(self.table[["case_id", "group_id", "split"]].itertuples(index=False)):
            digest.update(json.dumps([*map(str, row), target[i].tolist(), contents[i]], sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def fitted(self) -> dict[str, Any]:
        """Return what was learned from the training cases, as plain values."""
        return {"tables": {name: encoder.state for name, encoder in self.tables.items()}}

    def counts(self) -> pd.DataFrame:
        """Return the number of cases for each split and class."""
        if self.dataset.multilabel:
            return self.table.groupby("split")[list(self.dataset.classes)].sum().astype(int)
        names = self.table["label"].map(lambda k: self.dataset.classes[int(k)] if k >= 0 else "unknown")
        return pd.crosstab(self.table["split"], names)

    def class_weights(self) -> torch.Tensor:
        """Return N / (K · N_c) for each class of the training cases; negatives over positives when multi-label."""
        target = self.data.target[(self.table["split"] == "train").to_numpy()]
        if self.dataset.multilabel:
            positive = target.sum(axis=0)
            return torch.tensor((len(target) - positive) / positive.clip(1), dtype=torch.float32)
        counts = np.bincount(target, minlength=len(self.dataset.classes))
        return torch.tensor(len(target) / (len(counts) * counts.clip(1)), dtype=torch.float32)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Serve the training cases, augmented, in a new order each epoch.

        Raises:
            UserError: A table's encoding was not learned from the training cases.
        """
        columns = {name: self.dataset.modalities[name].columns for name in self.tables}
        require_own_statistics(self.tables, self.table, columns)
        cases = self._cases("train", train=True)
        rank, world = _rank()
        sampler = EpochSampler(
            self.data.target[cases.rows], mode=self.sampling, seed=self.seed, rank=rank, world_size=world
        )
        return self._loader(cases, sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Serve the validation cases in order."""
        return self.eval_dataloader("val")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Serve the cases of ``predict_split``, all if it is None, in order."""
        return self.eval_dataloader(self.predict_split)

    def eval_dataloader(self, split: Split | None) -> DataLoader[Batch]:
        """Serve a split, or all cases if it is None, without augmentation and in order."""
        cases = self._cases(split, train=False)
        rank, world = _rank()
        return self._loader(cases, EvalSampler(len(cases), rank, world))

    def _cases(self, split: Split | None, train: bool) -> Cases:
        rows = np.arange(len(self.table)) if split is None else np.flatnonzero(self.table["split"] == split)
        transform = {
            name: ImageTransform(spec.size, train, **self.transforms)
            for name, spec in self._specs.items()
            if spec.is_image
        }
        return Cases(self.data, rows, transform, train)

    def _loader(self, cases: Cases, sampler: Iterable[Any]) -> DataLoader[Batch]:
        return DataLoader(
            cases,
            batch_size=max(1, self.batch_size // _rank()[1]),
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate(self.data.pad_id),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=heed_parent_alone,
            pin_memory=torch.cuda.is_available(),
        )


def _is_there(cell: object) -> bool:
    """Say whether a cell holds anything."""
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return False
    return bool(cell) if isinstance(cell, str | tuple | list) else True


def _rank() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
