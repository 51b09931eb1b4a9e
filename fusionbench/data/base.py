"""The contract of a dataset: it is a case table and what each of its modalities is made of.

A dataset's file holds one class with ``@register``; its keyword-only constructor arguments are its yaml options.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fusionbench import registry
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FIXED_COLUMNS = ("case_id", "group_id", "split")


class Dataset(ABC):
    """A case table.

    ``cases()`` returns one row a case: ``case_id`` (unique str), ``group_id`` (str, the patient), ``split`` (``train``,
    ``val``, ``test``), the targets, and one column for each modality in ``modalities``.

    Targets: one int column ``label`` that indexes ``classes``, or, when ``multilabel``, one 0/1 column for each class,
    named as the class. -1 (or NaN) is unknown, which only prediction accepts.

    A cell is, by the modality's kind:

    * image: a tuple of items, each something ``read_image`` understands, such as an absolute path; empty means missing;
    * slices: a tuple of one item, a volume; empty means missing;
    * text: a str; None or "" means missing;
    * table: a tuple of raw values (float, str or None) in the order of ``ModalitySpec.columns``; None means missing.

    Besides, there is a column for each mask in ``masks``: a tuple of one item that ``read_image`` decodes to a picture
    whose brighter half of values is foreground; empty where a case has no such mask.

    Attributes:
        version: Goes up whenever the same folder would give other cases or labels.
        folder: Name of the dataset's folder below ``$FUSIONBENCH_DATA`` (default ``./data``); empty: it has none.
        holds: What the folder must hold, for the error when it is not there.
        request: Where a person gets the data.
        classes: Class names in label order.
        modalities: All that the dataset offers, by name, in the order in which strategies see them.
        masks: The pictures that each kind of mask, such as ``vessels``, is drawn on: a modality of kind image.
        lacking: What the options left out, by its name: why, and what follows. Told where somebody asks for it.
        telling: Further names that tell a case's class, whose words ``data.text={content: label_free}`` takes out too.
        labelled_in: Where a person writes the labels, for the error when there is none.
        notes: What ``cases`` found that is to be told, though nothing is wrong with it.
        multilabel: Whether a case can have several classes.
        known_leak: Why an official split has groups on both sides, if it has; checks then warn instead of refusing.
    """

    version: ClassVar[str] = "1"
    folder: ClassVar[str] = ""
    holds: ClassVar[str] = ""
    request: ClassVar[str] = ""

    classes: tuple[str, ...]
    modalities: Mapping[str, ModalitySpec]
    masks: Mapping[str, str] = {}
    lacking: Mapping[str, str] = {}
    telling: Sequence[str] = ()
    labelled_in: str = "the label column's name"
    notes: Sequence[str] = ()
    multilabel: bool = False
    known_leak: str = ""

    @abstractmethod
    def cases(self) -> pd.DataFrame:
        """Return the case table, sorted by ``case_id`` and with a fresh index."""

    def read_image(self, item: str) -> np.ndarray:
        """Decode one item to uint8: a picture (H, W, C) with C 1 or 3, or a volume (S, H, W)."""
        from fusionbench.data.images import read_image

        return read_image(Path(item))

    def picture_shape(self, item: str) -> tuple[int, int]:
        """Return height and width of one picture, by its header alone where ``read_image`` reads files."""
        from fusionbench.data.images import header_shape

        found = header_shape(Path(item)) if type(self).read_image is Dataset.read_image else None
        return found or self.read_image(item).shape[:2]

    def digest(self, item: str) -> str:
        """Return a sha256 of the item's content, by which its decoded form is cached and copies are found."""
        from fusionbench.data.images import file_digest

        return file_digest(Path(item))

    def exists(self, item: str) -> bool:
        """Say whether the item is there; a missing one makes its modality absent, a folder counts as unreadable."""
        try:
            return Path(item).is_file() or Path(item).is_dir()
        except OSError:  # such as a name too long, or a parent folder that may not be entered
            return False


def find_root(dataset: type[Dataset], root: str | None) -> Path:
    """Return the dataset's folder: ``root`` if given, else ``$FUSIONBENCH_DATA/<folder>``, else ``data/<folder>``.

    Raises:
        UserError: The folder is not there; says where it was looked for, what it holds and where to get it.
    """
    path = Path(root) if root else Path(os.environ.get("FUSIONBENCH_DATA", "data")) / dataset.folder
    if not path.is_dir():
        raise UserError(missing_message(dataset, path))
    return path.resolve()


def missing_message(dataset: type[Dataset], path: Path) -> str:
    """Return the one sentence for data that are not in place."""
    return (
        f"{dataset.__name__} was looked for in '{path}', which is not there: the folder must hold {dataset.holds}; "
        f"the data are requested at {dataset.request}; point elsewhere with data.root=FOLDER or, for a folder that "
        f"holds '{dataset.folder}', with the environment variable FUSIONBENCH_DATA"
    )


def require(dataset: type[Dataset], root: Path, *relative: str) -> Path:
    """Return ``root/relative``, or raise the same sentence as ``find_root`` naming the part that is missing."""
    path = root.joinpath(*relative)
    if not path.exists():
        raise UserError(missing_message(dataset, path))
    return path


def text_digest(text: str) -> str:
    """Return the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def make_dataset(node: Mapping[str, Any]) -> Dataset:
    """Build the dataset of a checked ``data`` node; whether its folder is there is found here."""
    component = registry.describe("data", node["name"])
    options = {k: v for k, v in node.items() if k in component.options}
    made: Dataset = component.load()(node.get("root"), **options)
    return made
