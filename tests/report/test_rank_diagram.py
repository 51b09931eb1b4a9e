"""The critical-difference diagram, and when it is refused."""

import numpy as np
import pandas as pd
import pytest
from contestants import contestants
from matplotlib.image import imread
from scipy.stats import friedmanchisquare

from fusionbench.errors import UserError
from fusionbench.report.rank_diagram import dataset_key, pooled, rank_diagram

SCORES = pd.DataFrame(
    np.random.default_rng(0).random((6, 4)) * 0.1 + np.arange(4) * 0.1,
    columns=["concat", "mean", "oct $alone", "a very long name of a method (adapt.name=lora)"],
)


def test_draws_and_says_friedmans_p(tmp_path):
    said = rank_diagram(SCORES, "mAP", tmp_path / "diagram.png")
    p = friedmanchisquare(*SCORES.to_numpy().T).pvalue
    assert said == f"Friedman p = {p:.3g}: the methods' ranks differ"
    assert imread(tmp_path / "diagram.png").std() > 0.05


def test_a_method_that_lacks_a_dataset_is_left_out_and_named(tmp_path):
    scores = SCORES.copy()
    scores.loc[2, "mean"] = np.nan
    assert rank_diagram(scores, "mAP", tmp_path / "x.png").endswith("without mean, which lack a dataset")


def test_refused_below_five_datasets_and_three_methods(tmp_path):
    with pytest.raises(UserError, match="at least 5 datasets, and these tables have 4"):
        rank_diagram(SCORES.iloc[:4], "mAP", tmp_path / "x.png")
    with pytest.raises(UserError, match=r"at least 3 methods .*there are 2"):
        rank_diagram(SCORES[["concat", "mean"]], "mAP", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_a_second_backbone_is_no_dataset():
    one, two = contestants({"a": 1.0, "b": 2.0})
    other = contestants({"a": 1.0}, draw=1)[0]
    keys = [dataset_key(method.runs[0]) for method in (one, two, other)]
    assert keys[0] == keys[1] != keys[2]
    frame = pooled({"x": (keys[0], {"a": 0.5, "b": 0.4}), "y": (keys[1], {"a": 0.7}), "z": (keys[2], {"a": 0.9})})
    assert frame["a"].loc[[keys[0], keys[2]]].tolist() == pytest.approx([0.6, 0.9])
    assert frame["b"].isna().all()  # a mean over one backbone is none over two
