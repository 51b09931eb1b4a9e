import pytest
from layouts import FINDINGS, make_mrnet

from fusionbench.data.mrnet import MRNet
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec


@pytest.fixture
def root(tmp_path):
    return make_mrnet(tmp_path)


def test_exams_have_three_planes_and_three_findings_in_the_order_of_ei(root):
    dataset = MRNet(str(root), holdout=10, slices=3)
    cases = dataset.cases().set_index("case_id")
    assert dataset.multilabel
    assert dataset.classes == ("abnormal", "meniscus", "acl")
    assert list(dataset.modalities) == ["axial", "coronal", "sagittal"]
    assert dataset.modalities["axial"] == ModalitySpec("slices", size=256, instances=3)
    for exam in ("0000", "0013", "1134"):
        assert tuple(cases.loc[exam, list(dataset.classes)]) == FINDINGS[int(exam) % 5]
    assert cases.loc["0013", "coronal"] == (str(root / "train/coronal/0013.npy"),)
    assert dataset.read_image(cases.loc["1134", "axial"][0]).shape == (7, 48, 48)


def test_the_first_exam_of_a_csv_without_header_is_not_lost(root):
    cases = MRNet(str(root), holdout=10).cases()
    assert len(cases) == 40
    assert cases["case_id"].iloc[0] == "0000"


def test_valid_is_test_and_validation_is_held_out_of_train(root):
    cases = MRNet(str(root), holdout=10).cases().set_index("case_id")
    assert cases["split"].value_counts().to_dict() == {"train": 20, "val": 10, "test": 10}
    assert (cases["split"] == "test").eq(cases.index.astype(int) >= 1130).all()
    found = cases[cases["split"] == "val"].groupby(["abnormal", "meniscus", "acl"]).size()
    assert found.tolist() == [2] * 5


def test_the_choice_depends_on_the_seed_alone(root):
    first = MRNet(str(root), holdout=10).cases()
    assert first.equals(MRNet(str(root), holdout=10).cases())
    assert not first.equals(MRNet(str(root), holdout=10, split_seed=1).cases())


def test_exams_may_have_lost_their_leading_zeros(root):
    expected = MRNet(str(root), holdout=10).cases()
    for path in root.glob("train-*.csv"):
        lines = [line.lstrip("0") if not line.startswith("0000") else line[3:] for line in path.read_text().split()]
        path.write_text("\n".join(lines))
    assert MRNet(str(root), holdout=10).cases().equals(expected)


def test_too_large_a_holdout_is_refused(root):
    with pytest.raises(UserError, match="120 groups cannot be held out of 30"):
        MRNet(str(root)).cases()


@pytest.mark.parametrize("text", ["exam,label\n0000,1\n", "0000,2\n", "0000,1\n0000,1\n", "0000\n0001\n"])
def test_a_csv_with_header_or_other_labels_is_refused(root, text):
    (root / "train-acl.csv").write_text(text)
    with pytest.raises(UserError, match=r"train-acl.csv' must have a line"):
        MRNet(str(root), holdout=10).cases()


def test_an_exam_that_one_csv_lacks_is_named(root):
    path = root / "valid-meniscus.csv"
    path.write_text("\n".join(path.read_text().split()[1:]))
    with pytest.raises(UserError, match=r"exam '1130' is in only one of valid-abnormal\.csv and valid-meniscus\.csv"):
        MRNet(str(root), holdout=10).cases()


@pytest.mark.parametrize("part", ["train-acl.csv", "valid/axial"])
def test_a_missing_part_is_named(root, part):
    (root / part).rename(root / "elsewhere")
    with pytest.raises(UserError, match=f"{part}', which is not there.*stanford.redivis.com"):
        MRNet(str(root), holdout=10).cases()
