import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionbench.data.splits import hold_out, rarest_class, split_cases
from fusionbench.errors import UserError


def table(patients, classes, seed=0):
    """Patients with 1 to 3 cases of one class each."""
    rng = np.random.default_rng(seed)
    rows = [(f"c{p}.{i}", f"p{p}", p % classes) for p in range(patients) for i in range(rng.integers(1, 4))]
    return pd.DataFrame(rows, columns=["case_id", "group_id", "label"])


@settings(max_examples=20, deadline=None)
@given(patients=st.integers(20, 60), classes=st.integers(1, 4), seed=st.integers(0, 9))
def test_a_group_is_in_one_split_and_every_class_in_each(patients, classes, seed):
    cases = table(patients, classes, seed)
    split = split_cases(cases, cases["label"], (0.6, 0.2, 0.2), seed)
    assert split.groupby(cases["group_id"]).nunique().eq(1).all()
    assert pd.crosstab(split, cases["label"]).shape == (3, classes)
    assert (pd.crosstab(split, cases["label"]) > 0).all(axis=None)


def test_shares_hold_in_all_and_in_each_class():
    cases = table(600, 3)
    split = split_cases(cases, cases["label"], (0.7, 0.1, 0.2), 0)
    shares = pd.crosstab(split, cases["label"], normalize="columns").loc[["train", "val", "test"]]
    np.testing.assert_allclose(shares, [[0.7] * 3, [0.1] * 3, [0.2] * 3], atol=0.02)


def test_row_order_does_not_matter_and_the_seed_does():
    cases = table(80, 2)
    shuffled = cases.sample(frac=1.0, random_state=3)
    split = split_cases(cases, cases["label"], (0.6, 0.15, 0.25), 1)
    again = split_cases(shuffled, shuffled["label"], (0.6, 0.15, 0.25), 1)
    pd.testing.assert_series_equal(split, again.sort_index())
    assert (split != split_cases(cases, cases["label"], (0.6, 0.15, 0.25), 2)).any()


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_three_patients_reaches_every_split_and_one_of_two_stays_in_train(seed):
    cases = table(60, 2)
    cases.loc[cases["group_id"].isin(["p3", "p10", "p31"]), "label"] = 7
    cases.loc[cases["group_id"].isin(["p5", "p20"]), "label"] = 8
    split = split_cases(cases, cases["label"], (0.7, 0.1, 0.2), seed)
    assert set(split[cases["label"] == 7]) == {"train", "val", "test"}
    assert set(split[cases["label"] == 8]) == {"train"}


def test_small_classes_are_split_although_a_share_asks_for_more_folds_than_they_have_patients():
    cases = pd.DataFrame([(f"c{i}", f"p{i}", i % 4) for i in range(12)], columns=["case_id", "group_id", "label"])
    split = split_cases(cases, cases["label"], (0.8, 0.1, 0.1), 0)
    assert set(split) == {"train", "val", "test"}


def test_a_share_of_zero_makes_no_split():
    cases = table(30, 2)
    assert set(split_cases(cases, cases["label"], (0.8, 0.2, 0), 0)) == {"train", "val"}
    assert set(split_cases(cases, cases["label"], (0, 0, 1), 0)) == {"test"}


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.2, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_that_are_no_shares_are_refused(fractions):
    cases = table(30, 2)
    with pytest.raises(UserError, match="add up to 1"):
        split_cases(cases, cases["label"], fractions, 0)


@pytest.mark.parametrize(("patients", "classes"), [(2, 1), (4, 4)])
def test_too_few_groups_are_refused(patients, classes):
    cases = table(patients, classes)
    with pytest.raises(UserError, match=f"{patients} groups .* too few"):
        split_cases(cases, cases["label"], (0.6, 0.2, 0.2), 0)


def test_hold_out_takes_exactly_n_groups_in_proportion():
    groups = pd.Series([f"{i:04d}" for i in range(1130)], index=range(5, 1135))
    strata = pd.Series(["a"] * 800 + ["b"] * 310 + ["c"] * 20, index=groups.index)
    out = hold_out(groups, strata, 120, 0)
    assert out.sum() == 120
    assert out.index.equals(groups.index)
    counts = strata[out].value_counts()
    np.testing.assert_allclose([counts["a"], counts["b"], counts["c"]], 120 / 1130 * np.array([800, 310, 20]), atol=1)


def test_hold_out_depends_on_the_seed_only():
    groups, strata = pd.Series([f"{i:02d}" for i in range(40)]), pd.Series(["a", "b"] * 20)
    out, order = hold_out(groups, strata, 9, 0), np.random.default_rng(0).permutation(40)
    pd.testing.assert_series_equal(out, hold_out(groups[order], strata[order], 9, 0).sort_index())
    assert (out != hold_out(groups, strata, 9, 1)).any()
    assert not hold_out(groups, strata, 0, 0).any()


def test_hold_out_keeps_the_cases_of_a_group_together():
    groups = pd.Series(["p1", "p2", "p1", "p3"])
    out = hold_out(groups, pd.Series(["x"] * 4), 1, 3)
    assert groups[out].nunique() == 1
    assert out.groupby(groups).nunique().eq(1).all()


@pytest.mark.parametrize("n", [-1, 3, 4])
def test_hold_out_refuses_to_leave_nothing(n):
    with pytest.raises(UserError, match=f"{n} groups cannot be held out of 3"):
        hold_out(pd.Series(["a", "b", "c"]), pd.Series([0, 0, 0]), n, 0)


def test_rarest_class_is_the_rarest_that_is_positive():
    targets = pd.DataFrame({"often": [1, 1, 1, 0, -1], "rare": [0, 1, 0, 0, -1]})
    assert rarest_class(targets).tolist() == ["often", "rare", "often", "none", "none"]
