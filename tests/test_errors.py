"""The check of a number that constructors share."""

from __future__ import annotations

import pytest

from fusionbench.errors import UserError, check_number


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
