"""Work in threads keeps its order, passes errors on, and is silent unless it takes long."""

import pytest

from fusionbench.data import threads
from fusionbench.data.threads import in_threads


def test_results_are_in_order_and_quick_work_is_silent(capsys):
    assert in_threads(lambda n: n * n, range(100), "squaring") == [n * n for n in range(100)]
    assert in_threads(str, [], "nothing") == []
    assert capsys.readouterr() == ("", "")


def test_an_error_ends_the_work():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda n: 1 / n, [1, 0, 2], "dividing")


def test_long_work_shows_a_bar_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr(threads, "_SHOW_PROGRESS_AFTER", -1.0)
    in_threads(str, [1, 2], "reading")
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading" in err
