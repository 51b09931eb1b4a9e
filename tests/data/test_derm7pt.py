import os

import pytest
from layouts import DIAGNOSES, make_derm7pt, write_rows

from fusionbench.data.derm7pt import LABELS, Derm7pt
from fusionbench.errors import UserError


@pytest.fixture
def root(tmp_path):
    return make_derm7pt(tmp_path)


def test_cases_follow_meta_and_the_official_indexes(root):
    dataset = Derm7pt(str(root))
    cases = dataset.cases()
    assert list(dataset.modalities) == ["clinical", "dermoscopic"]
    assert dataset.classes == ("BCC", "NEV", "MEL", "SK", "MISC")
    assert cases["split"].value_counts().to_dict() == {"train": 20, "val": 20, "test": 20}
    by_number = cases.set_index(cases["case_id"].astype(int)).sort_index()
    assert by_number["label"].tolist() == [case % len(DIAGNOSES) for case in range(60)]
    assert by_number["split"].tolist() == ["train"] * 20 + ["val"] * 20 + ["test"] * 20
    assert by_number.loc[1, "clinical"] == (str(root / "images/NEL/NEL000.JPG"),)


def test_paths_match_whatever_their_case(root):
    dataset = Derm7pt(str(root))
    cases = dataset.cases().set_index("case_id")
    assert cases.loc["4", "dermoscopic"] == (str(root / "images/FCl/Fcl003.jpg"),)
    assert all(dataset.exists(item) for name in dataset.modalities for cell in cases[name] for item in cell)


def test_the_exact_path_goes_first(root):
    twin = root / "images" / "nel" / "NEL000.JPG"
    twin.parent.mkdir()
    twin.write_bytes(b"another file on a disk that tells cases apart")
    assert Derm7pt(str(root)).cases().set_index("case_id").loc["1", "clinical"][0].endswith("NEL/NEL000.JPG")


def test_folders_are_listed_once_and_no_file_is_probed(root, monkeypatch):
    dataset, listed = Derm7pt(str(root)), []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(os.fspath(folder)) or scan(folder))
    dataset.cases()
    images = str(root / "images")
    assert sorted(listed) == [images, f"{images}/FCl", f"{images}/NEL"]


def test_one_file_for_both_modalities_is_kept(root):
    case = Derm7pt(str(root)).cases().set_index("case_id").loc["2"]
    assert case["clinical"] == case["dermoscopic"]


def test_a_lost_file_and_an_empty_cell_are_missing(root):
    (root / "images/NEL/NEL000.JPG").unlink()
    meta = root / "meta/meta.csv"
    meta.write_text(meta.read_text().replace("FCl/Fcl002.jpg", ""))
    dataset = Derm7pt(str(root))
    cases = dataset.cases().set_index("case_id")
    assert not dataset.exists(cases.loc["1", "clinical"][0])
    assert cases.loc["3", "dermoscopic"] == ()


def test_all_published_diagnoses_have_a_class():
    assert len(LABELS) == 21
    assert [LABELS[name] for name in ("basal cell carcinoma", "reed or spitz nevus", "melanoma metastasis")] == [
        0,
        1,
        2,
    ]
    assert [LABELS[name] for name in ("seborrheic keratosis", "vascular lesion")] == [3, 4]


def test_the_folder_above_is_the_root_as_well(root):
    assert Derm7pt(str(root.parent)).cases().equals(Derm7pt(str(root)).cases())


def test_an_unknown_diagnosis_is_told_with_the_nearest(root):
    meta = root / "meta/meta.csv"
    meta.write_text(meta.read_text().replace("clark nevus", "clarks nevus", 1))
    with pytest.raises(UserError, match="'clarks nevus'; did you mean 'clark nevus'"):
        Derm7pt(str(root)).cases()


@pytest.mark.parametrize(
    ("indexes", "message"),
    [
        ([0, 60], "'60', which is no row"),
        ([0, 20], "'20'.* in another split too"),
        ([0], "row 1 of meta.csv is in none"),
    ],
)
def test_wrong_indexes_are_told(root, indexes, message):
    write_rows(root / "meta/train_indexes.csv", [["indexes"], *([i] for i in indexes)])
    with pytest.raises(UserError, match=message):
        Derm7pt(str(root)).cases()


@pytest.mark.parametrize("part", ["meta/meta.csv", "meta/valid_indexes.csv"])
def test_a_missing_part_is_named(root, part):
    (root / part).unlink()
    with pytest.raises(UserError, match=f"{part}', which is not there.*derm.cs.sfu.ca"):
        Derm7pt(str(root)).cases()


def test_a_missing_column_is_told(root):
    meta = root / "meta/meta.csv"
    meta.write_text(meta.read_text().replace("diagnosis,", "diagnoses,", 1))
    with pytest.raises(UserError, match="no column 'diagnosis'; did you mean 'diagnoses'"):
        Derm7pt(str(root)).cases()
