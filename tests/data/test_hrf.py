"""HRF: endings in any case, masks by hand, and three people of one number."""

import pytest
from layouts import make_hrf

from fusionbench.data.hrf import HRF
from fusionbench.errors import UserError


@pytest.fixture
def root(tmp_path):
    return make_hrf(tmp_path)


def test_a_case_is_a_photograph_of_one_person(root):
    dataset = HRF(str(root))
    cases = dataset.cases()
    assert list(cases.columns) == ["case_id", "group_id", "split", "label", "cfp", "vessels"]
    assert len(cases) == 45
    assert cases["group_id"].nunique() == 45
    rows = cases.set_index("case_id")
    assert rows.loc["01_dr", "cfp"] == (str(root / "images/01_dr.JPG"),)
    assert rows.loc["15_h", "vessels"] == (str(root / "manual1/15_h.tif"),)
    assert [dataset.classes[rows.loc[name, "label"]] for name in ("02_dr", "02_g", "02_h")] == [
        "diabetic retinopathy",
        "glaucoma",
        "normal",
    ]
    assert dataset.notes == []


def test_every_class_is_in_every_split_whatever_the_seed(root):
    for seed in range(3):
        cases = HRF(str(root), split_seed=seed).cases()
        assert cases.groupby("split")["label"].nunique().to_dict() == {"train": 3, "val": 3, "test": 3}
        assert cases["split"].value_counts()["train"] >= 30
    assert not HRF(str(root), split_seed=1).cases().equals(HRF(str(root)).cases())


def test_the_folder_of_masks_is_found_whatever_its_case(root):
    (root / "manual1").rename(root / "Manual1")
    assert HRF(str(root)).cases()["vessels"].map(len).eq(1).all()


def test_without_masks_there_are_none(root):
    (root / "manual1").rename(root / "elsewhere")
    dataset = HRF(str(root))
    assert dataset.cases()["vessels"].map(len).sum() == 0
    assert dataset.notes == ["45 of 45 pictures of HRF have no vessel mask"]


def test_another_name_is_refused(root):
    (root / "images/16_x.jpg").touch()
    with pytest.raises(UserError, match=r"'16_x' in .* is not named as HRF's pictures are"):
        HRF(str(root)).cases()


def test_a_missing_part_is_named(root):
    (root / "images").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"images', which is not there.*fau\.de"):
        HRF(str(root)).cases()
