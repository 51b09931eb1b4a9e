"""Sizes of the table encoders that cannot be."""

from __future__ import annotations

import pytest

from fusionbench.encoders.table import Table
from fusionbench.encoders.table_mlp import TableMLP
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

SPEC = ModalitySpec("table", columns=("age", "size"))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (Table, {"width": 0}, "'encoder.width' must be at least 1, not 0"),
        (Table, {"depth": 0}, "'encoder.depth' must be at least 1, not 0"),
        (Table, {"heads": 0}, "'encoder.heads' must be at least 1, not 0"),
        (Table, {"width": 6, "heads": 4}, "'encoder.width' must be a multiple of 'encoder.heads', but 6"),
        (TableMLP, {"width": 0}, "'encoder.width' must be at least 1, not 0"),
        (TableMLP, {"depth": -1}, "'encoder.depth' must be at least 0, not -1"),
        (TableMLP, {"dropout": 1.0}, "'encoder.dropout' must be at least 0 and below 1, not 1.0"),
        (TableMLP, {"dropout": -0.1}, "'encoder.dropout' must be at least 0 and below 1, not -0.1"),
    ],
)
def test_a_size_out_of_range_is_refused(kind: type[Table] | type[TableMLP], options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        kind(SPEC, **options)
    assert str(caught.value).startswith(said)


def test_the_smallest_sizes_work() -> None:
    assert Table(SPEC, width=1, depth=1, heads=1).depth == 1
    assert TableMLP(SPEC, width=1, depth=0, dropout=0.0).depth == 0
