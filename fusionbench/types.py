"""The values that travel through a run: what a modality is, a batch, a strategy's output.

Tensor names carry their shape: B batch, M modalities, S images of a modality in a case, C channels, H, W, N tokens,
D width, L text length, F columns, K classes, R rank, V views.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["image", "slices", "text", "table"]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class ModalitySpec:
    """What one modality is made of.

    Args:
        kind: ``image`` (one or more pictures of a case), ``slices`` (one volume), ``text`` or ``table``.
        size: Height and width in pixels that pictures are resized to; unused by text and tables.
        instances: S, how many pictures or slices of a case go into a batch.
        columns: Names of a table's columns, in the order of the cell's values.
    """

    kind: Kind
    size: int = 224
    instances: int = 1
    columns: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        """Whether the modality arrives as pixels."""
        return self.kind in ("image", "slices")


@dataclass(frozen=True)
class Problem:
    """What a strategy must know of the data.

    Args:
        modalities: What each is made of, in the fixed order of ``Batch.present``.
        classes: Names in label order.
        multilabel: Whether a case can have several classes.
        complete: Whether every case has every modality; a property of the data, so that it is the same on all ranks.
    """

    modalities: dict[str, ModalitySpec]
    classes: tuple[str, ...]
    multilabel: bool = False
    complete: bool = False


class Batch(NamedTuple):
    """Cases on their way into a strategy.

    ``inputs`` maps a modality to image (B, S, C, H, W) float32, text (B, L) int64 token ids, or table (B, F) float32.
    ``present`` is (B, M) bool in the order of ``Problem.modalities``; what is absent holds zeros and must not be read.
    ``target`` is (B,) int64, or (B, K) float32 when multi-label, and -1 where unknown. ``group_id`` is the patient.
    """

    inputs: dict[str, Tensor]
    present: Tensor
    target: Tensor
    case_id: list[str]
    group_id: list[str]
    extras: dict[str, Tensor]


class Answers(NamedTuple):
    """What a language model wrote about its cases.

    Attributes:
        classes: (B,) int64, the class that each text names, -1 where it names none or several.
        named: The names of all classes that each text names, `` | `` between several, empty for none.
        texts: What was written, as it is.
    """

    classes: Tensor
    named: list[str]
    texts: list[str]


@dataclass
class Output:
    """What a strategy returns.

    Attributes:
        logits: (B, K), what is scored.
        branches: Other predictions (B, K) by name, e.g. ``primary/oct``.
        weights: (B, M), how much each modality counted, if the strategy says so.
        diagnostics: Scalars that are logged and never back-propagated.
        branch_present: (B,) bool for each branch, whether the branch saw its modality.
        maps: Dense predictions by name, e.g. ``vessels`` (B, 1, H, W) logits, ``attention/<layer>`` (B, grid, grid).
        answers: What was written about each case; None where nothing was.
    """

    logits: Tensor
    branches: dict[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    branch_present: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    answers: Answers | None = None


class Tokenizer(Protocol):
    """What the DataModule needs of a text encoder before any weights load."""

    pad_id: int

    def __call__(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Return the token ids of each text, special tokens included, at most ``max_length`` of them."""
