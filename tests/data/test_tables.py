import json

import numpy as np
import pytest

from fusionbench.data.tables import TableEncoder
from fusionbench.errors import UserError

COLUMNS = ["age", "sex", "crp"]
ROWS = [(40.0, "female", 1.0), (60.0, None, None), (80.0, "male", 4.0)]


def test_numbers_are_standardised_by_the_rows_it_was_fitted_on():
    encode = TableEncoder.fit(COLUMNS, ROWS)
    ages = np.array([encode(row)[0] for row in ROWS])
    assert ages == pytest.approx((np.array([40, 60, 80]) - 60) / np.std([40, 60, 80]))
    assert encode((100.0, None, None))[0] == pytest.approx(40 / np.std([40, 60, 80]))


def test_words_become_a_column_each_and_an_unseen_one_is_all_zeros():
    encode = TableEncoder.fit(COLUMNS, ROWS)
    assert encode.names == ("age", "sex=female", "sex=male", "crp")
    assert encode((60.0, "male", 2.5))[1:3].tolist() == [0, 1]
    assert encode((60.0, "other", 2.5))[1:3].tolist() == [0, 0]
    assert encode((60.0, None, 2.5))[1:3].tolist() == [0, 0]


@pytest.mark.parametrize("gap", [None, float("nan"), ""])
def test_a_gap_in_a_number_is_the_mean(gap):
    encoded = TableEncoder.fit(COLUMNS, ROWS)((gap, "male", 2.5))
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [0, 0, 1, 0]


def test_a_constant_column_and_one_without_any_value_are_finite():
    encode = TableEncoder.fit(["same", "none"], [(3.0, None), (3.0, None)])
    assert encode((3.0, None)).tolist() == [0, 0]
    assert encode((4.0, 7.0)).tolist() == [1, 7]


@pytest.mark.parametrize("value", [0.1, 1e-9, -12345.678])
def test_a_constant_that_is_no_binary_fraction_has_no_deviation(value):
    encode = TableEncoder.fit(["same"], [(value,)] * 30)
    assert encode((value + 0.5,)).tolist() == pytest.approx([0.5])


def test_small_numbers_that_differ_are_standardised():
    encode = TableEncoder.fit(["molar"], [(1e-9,), (3e-9,)])
    assert encode((3e-9,)).tolist() == pytest.approx([1])


@pytest.mark.parametrize(("words", "rows"), [(51, 200), (11, 11)])
def test_names_and_free_text_are_no_categories(words, rows):
    cells = [(f"p{i % words}",) for i in range(rows)]
    with pytest.raises(UserError, match=f"column 'id' has {words} different words in {rows} training cases"):
        TableEncoder.fit(["id"], cells)


@pytest.mark.parametrize(("words", "rows"), [(50, 200), (10, 10), (11, 12)])
def test_categories_may_be_many(words, rows):
    assert len(TableEncoder.fit(["ward"], [(f"w{i % words}",) for i in range(rows)]).names) == words


def test_the_state_survives_json_and_encodes_alike():
    encode = TableEncoder.fit(COLUMNS, ROWS)
    again = TableEncoder(json.loads(json.dumps(encode.state)))
    row = (51.0, "male", 3.3)
    assert again.names == encode.names
    assert again(row).tolist() == encode(row).tolist()


def test_a_word_where_training_had_numbers_is_named():
    with pytest.raises(UserError, match="column 'age' holds numbers in training, but here 'old'"):
        TableEncoder.fit(COLUMNS, ROWS)(("old", "male", 1.0))


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="column 'age' holds 'inf', which is no finite number"):
        TableEncoder.fit(COLUMNS, ROWS)((float("inf"), "male", 1.0))
    with pytest.raises(UserError, match="column 'age' holds 'inf', which is no finite number"):
        TableEncoder.fit(COLUMNS, [*ROWS, (float("inf"), "male", 1.0)])


def test_there_must_be_a_row_to_learn_from():
    with pytest.raises(UserError, match="no training case has the table with columns age, sex, crp"):
        TableEncoder.fit(COLUMNS, [])
