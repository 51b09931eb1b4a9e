"""Dense predictions of a few test cases as arrays that a report draws: pictures, masks and maps of attention."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionbench.data.cases import Cases, collate
from fusionbench.data.module import FusionData
from fusionbench.data.transforms import ImageTransform
from fusionbench.files import write_bytes
from fusionbench.fusion.answers import unwritten
from fusionbench.fusion.base import Strategy
from fusionbench.inference import run_case
from fusionbench.task import FusionTask
from fusionbench.types import Batch

Arrays = dict[str, NDArray[Any]]
_COUNT = 6


def write(
    path: Path | None, task: FusionTask, source: FusionData, table: pd.DataFrame, anonymous: Callable[[str], str]
) -> Path | None:
    """Write an .npz of six test cases for a strategy that returns maps, else nothing.

    Its first axis is N, the cases: ``case`` hashed, ``true`` and ``decided`` class names, ``right`` bool, ``picture``
    (N, H, W, 3) uint8 without normalisation; of each dense prediction ``predicted/<name>`` (N, H, W) bool, at
    probability 0.5, and of a mask that the data have ``true/<name>`` (N, H, W) bool, ``known/<name>`` (N,) bool; and
    ``attention/<layer>`` (N, G, G) float32. Where a case has several pictures the middle one is shown.

    On several devices all call it, since a sharded strategy runs on all of them.

    Args:
        path: Ends in .npz; it holds pictures of patients, so it stays where the data may be. None: nothing is written.
        task: Trained.
        source: Its data.
        table: What ``inference.predictions`` returned for the test split, ids not hashed.
        anonymous: Hashes a case's id.

    Returns:
        The file, None where there are no maps or no pictures.
    """
    modality = _shown_modality(source)
    cases = source.eval_dataloader("test").dataset
    assert isinstance(cases, Cases)
    if modality is None:
        return None
    place = {source.data.case_id[row]: i for i, row in enumerate(cases.rows)}
    masks = source.data.masks.values()
    masked = {case for case, i in place.items() if any(mask.items[cases.rows[i]] for mask in masks)}
    chosen = choose(table[table[f"present.{modality}"]], task.problem.classes, masked)
    shown = _unnormalised(source, cases)
    found: list[Arrays] = []
    for case, *words in chosen.itertuples(index=False):
        maps = _maps(task, collate(source.data.pad_id)([cases[place[case], 0]]))
        if not maps:
            return None
        said = dict(zip(chosen.columns[1:], map(np.array, words), strict=True))
        picture = _middle(shown[place[case], 0].inputs[modality])
        found.append({"case": np.array(anonymous(case)), **said, "picture": picture, **maps})
    return _save(path, found) if found and path else None


def _save(path: Path, found: Sequence[Arrays]) -> Path:
    """Write the arrays of all cases, joined."""
    buffer = io.BytesIO()
    joined: Any = {name: np.stack([own[name] for own in found]) for name in found[0]}
    np.savez_compressed(buffer, **joined)
    return write_bytes(path, buffer.getvalue())


def choose(
    table: pd.DataFrame, classes: Sequence[str], preferred: Collection[str], count: int = _COUNT, seed: int = 0
) -> pd.DataFrame:
    """Return ``case``, ``true``, ``decided`` and ``right`` of a few cases: of each class, decided right and wrong.

    These take turns; among cases alike chance decides, by the seed.

    Args:
        table: As ``inference.predictions`` returns it.
        classes: Names in label order.
        preferred: Cases that are taken before others like them.
        count: At most how many.
        seed: Of the choice.
    """
    rows = _decisions(table, classes).sample(frac=1, random_state=seed)
    rows["later"] = ~rows["case"].isin(preferred)
    rows = rows.sort_values("later", kind="stable")
    rows["turn"] = rows.groupby(["true", "right"]).cumcount()
    rows["half"] = rows.groupby(["turn", "right"]).cumcount()
    return rows.sort_values(["turn", "half"], kind="stable").head(count)[["case", "true", "decided", "right"]]


def _decisions(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return the true classes, the decided ones and whether they are the same, in words."""
    scores_NK = table[[f"prob.{name}" for name in classes]].to_numpy()
    if "target" in table.columns:
        decided = table["answer"].to_numpy() if "answer" in table.columns else scores_NK.argmax(axis=1)
        names = [*classes, "None"]  # -1 is the last
        true, said = ([names[k] for k in labels] for labels in (table["target"], decided))
    else:
        truth_NK = table[[f"target.{name}" for name in classes]].to_numpy() == 1
        true, said = (
            [", ".join(np.array(classes)[row]) or "none" for row in yes] for yes in (truth_NK, scores_NK > 0.5)
        )
    rows = pd.DataFrame({"case": table["case"].to_numpy(), "true": true, "decided": said})
    return rows.assign(right=rows["true"] == rows["decided"])


def _shown_modality(source: FusionData) -> str | None:
    """Return the pictures that masks are drawn on, else the first, else None."""
    drawn_on = [mask.modality for mask in source.data.masks.values()]
    pictures = [name for name, spec in source.problem.modalities.items() if spec.is_image]
    return next(iter([*drawn_on, *pictures]), None)


def _maps(task: FusionTask, case: Batch) -> Arrays:
    """Run the strategy on one case and return its maps, each without the axis of cases, and the true masks."""
    with unwritten(task.strategy), _drawing(task.strategy):  # what an answer says is in the table of predictions
        maps = run_case(task, case).maps
    arrays: Arrays = {}
    for name, values in maps.items():
        own = values[0].float().cpu().numpy()
        if name.startswith("attention/"):
            arrays[name] = own
            continue
        arrays[f"predicted/{name}"] = own[0] > 0
        if name in case.extras:
            arrays[f"true/{name}"] = case.extras[name][0, 0].numpy() > 0.5
            arrays[f"known/{name}"] = case.extras[f"{name}/present"][0].numpy()
    return arrays


@contextmanager
def _drawing(strategy: Strategy) -> Iterator[None]:
    """Have a strategy make the maps that it makes for pictures alone."""
    strategy.draws = True
    try:
        yield
    finally:
        strategy.draws = False


def _unnormalised(source: FusionData, cases: Cases) -> Cases:
    """Return the same cases with pictures in 0..1, otherwise as evaluation reads them."""
    pictures = {name: spec for name, spec in source.problem.modalities.items() if spec.is_image}
    shown = {name: ImageTransform(spec.size, train=False, normalize="none") for name, spec in pictures.items()}
    return Cases(source.data, cases.rows, shown, train=False)


def _middle(pictures_SCHW: Tensor) -> NDArray[np.uint8]:
    """Return the middle one of a case's pictures in 0..1, (H, W, 3)."""
    middle_HWC = pictures_SCHW[len(pictures_SCHW) // 2].permute(1, 2, 0)
    whole: NDArray[np.uint8] = (middle_HWC * 255).round().to(torch.uint8).numpy()
    return whole
