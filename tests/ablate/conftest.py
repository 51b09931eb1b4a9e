"""A folder of tables, and the results of one that nobody disturbed."""

import pytest
from sweeping import COLUMNS, ROWS, ablate, write_base, write_table


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tables")
    write_base(made)
    write_table(made)
    write_table(made, "square", columns=COLUMNS, rows=ROWS, metrics=["mAP", "accuracy"])
    return made


@pytest.fixture(scope="session")
def square(folder):
    """A table of two rows and two columns that nobody disturbed."""
    place = folder / "undisturbed"
    done = ablate(folder / "square.yaml", place)
    assert done.code == 0, done.err
    return place
