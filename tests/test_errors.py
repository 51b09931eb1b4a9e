"""The check of a number that constructors share, and what of an error may be tracked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fusionbench.data.cells import read_table
from fusionbench.errors import UserError, check_number, public_reason


def test_what_is_in_range_passes() -> None:
    check_number("a", 0, least=0)
    check_number("a", 0.999, least=0, below=1)
    check_number("a", 1e-12, above=0)
    check_number("a", -5)


@pytest.mark.parametrize(
    ("value", "bounds", "wanted"),
    [
        (-1, {"least": 0}, "at least 0, not -1"),
        (0, {"above": 0}, "above 0, not 0"),
        (1.0, {"least": 0, "below": 1}, "at least 0 and below 1, not 1.0"),
        (float("inf"), {}, "finite, not inf"),
        (float("-inf"), {"below": 1}, "finite and below 1, not -inf"),
        (float("nan"), {"least": 0}, "finite and at least 0, not nan"),
    ],
)
def test_what_is_not_is_told_with_what_is_possible(value: float, bounds: dict[str, float], wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        check_number("optimizer.lr", value, **bounds)
    assert str(caught.value) == f"'optimizer.lr' must be {wanted}"


def _caught(act: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its sentence is what is looked at
        act()
    return caught.value


def test_only_what_speaks_of_options_may_be_tracked() -> None:
    option = _caught(lambda: check_number("optimizer.lr", -1, least=0))
    assert public_reason(option) == str(option)
    data = _caught(lambda: read_table(Path("folder-of-a-patient/cases.csv")))
    assert "patient" in str(data)
    assert public_reason(data) == "the data are not there or have a fault, which the console names"
    assert public_reason(_caught(lambda: int("patient 7"))) == "ValueError"
    assert public_reason(UserError("case 7")) == "it was refused; the console says why"

    def plugin() -> None:
        raise UserError("case 7")

    assert public_reason(_caught(plugin)) == "it was refused; the console says why"
