"""What a search for leaks between splits returns, and how it names the cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["copies", "near_duplicates", "statistics", "val_is_test"]
KINDS: tuple[str, ...] = get_args(Kind)
MOST_NAMED = 5  # of the offenders in one sentence


@dataclass(frozen=True)
class Leak:
    """Something that lets a model see what it is scored on.

    Attributes:
        kind: The word by which ``data.allow`` lets it through.
        found: What was found, with the ids of the cases.
        remedy: What to do about it.
    """

    kind: Kind
    found: str
    remedy: str


def listed(offenders: Sequence[str]) -> str:
    """Return ``first a; b; c``: the offenders of a sentence, at most ``MOST_NAMED`` by name."""
    rest = len(offenders) - MOST_NAMED
    return f"first {'; '.join(offenders[:MOST_NAMED])}" + (f" and {rest} more" if rest > 0 else "")
