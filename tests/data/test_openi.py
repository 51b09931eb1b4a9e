"""Open-I: cases, groups, what is missing, and faults of its tables."""

import csv

import pytest
from layouts import OPENI, TAKEN_OUT, make_openi, openi_case, write_rows

from fusionbench.data.base import find_root
from fusionbench.data.module import FusionData
from fusionbench.data.openi import OpenI, says_something, study_of
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec


@pytest.fixture
def root(tmp_path):
    return make_openi(tmp_path)


class Letters:
    """A tokenizer of single letters."""

    pad_id = 0

    def __call__(self, texts, max_length):
        return [[ord(letter) % 97 + 1 for letter in text][:max_length] for text in texts]


def test_a_case_is_a_picture_with_the_report_of_its_study(root):
    dataset = OpenI(str(root))
    assert dataset.multilabel
    assert dataset.classes == OPENI
    assert dict(dataset.modalities) == {"xray": ModalitySpec("image", size=256), "report": ModalitySpec("text")}
    cases = dataset.cases()
    assert list(cases.columns) == ["case_id", "group_id", "split", *OPENI, "xray", "report"]
    assert cases["case_id"].is_monotonic_increasing
    assert cases["split"].value_counts().to_dict() == {"train": 17, "val": 17, "test": 17}
    for part, split in enumerate(("train", "val", "test")):
        names, findings, impression, labels = openi_case(part, 5)
        rows = cases[cases["case_id"].isin(names)]
        assert len(rows) == 2
        assert set(rows["split"]) == {split}
        assert set(rows["group_id"]) == {f"CXR{100 * part + 105}"}
        assert rows[list(OPENI)].to_numpy().tolist() == [labels, labels]
        assert set(rows["report"]) == {f"FINDINGS : {findings} IMPRESSION : {impression}"}
        assert rows["xray"].tolist() == [(str(root / "images" / f"{name}.png"),) for name in names]


@pytest.mark.parametrize(
    ("report", "says"),
    [
        ("FINDINGS :  IMPRESSION : ", False),
        ("FINDINGS : IMPRESSION :", False),
        ("FINDINGS: . IMPRESSION: -", False),
        ("", False),
        ("FINDINGS :  IMPRESSION : Normal.", True),
        ("Normal chest.", True),
        (f"FINDINGS : {TAKEN_OUT} IMPRESSION :", True),
    ],
)
def test_headings_alone_say_nothing(report, says):
    assert says_something(report) is says


def test_missing_pictures_and_reports_are_missing_modalities(root, tmp_path):
    data = FusionData(OpenI(str(root), size=32), {"report": Letters()}, 0, cache=str(tmp_path / "cache"))
    present = dict(zip(data.data.case_id, data.data.present.tolist(), strict=True))
    for part in range(3):
        silent, gone, whole = (openi_case(part, study)[0][0] for study in (3, 1, 2))
        assert present[silent] == [True, False]
        assert present[gone] == [part != 0, True]
        assert present[whole] == [True, True]
    assert not data.problem.complete
    assert "1 of 51 files of 'xray' are missing or unreadable" in data.notes
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs["xray"].shape == (8, 1, 3, 32, 32)
    assert batch.target.shape == (8, 14)


def test_a_study_in_two_official_splits_is_told(root, tmp_path):
    train = (root / "train.csv").read_text().splitlines()
    with (root / "test.csv").open("a") as file:
        file.write(train[1].replace("-1001.png", "-1009.png") + "\n")
    made = FusionData(OpenI(str(root), size=32), {"report": Letters()}, 0, cache=str(tmp_path / "cache"))
    assert any("1 group (patient) is in more than one split" in n and "by picture" in n for n in made.notes)


def test_the_folder_above_is_the_root_as_well(root, monkeypatch):
    expected = OpenI(str(root)).cases()
    assert OpenI(str(root.parent)).cases().equals(expected)
    root.parent.joinpath("openi").symlink_to(root.parent, target_is_directory=True)
    monkeypatch.setenv("FUSIONBENCH_DATA", str(root.parent))
    assert OpenI(None).cases().equals(expected)


def test_ids_without_extension_and_labels_with_a_point_are_read(root):
    expected = OpenI(str(root)).cases()
    for path in root.glob("*.csv"):
        rows = [line.replace(".png", "") for line in path.read_text().splitlines()]
        path.write_text("\n".join([rows[0], *(row.replace(",0", ",0.0").replace(",1", ",1.0") for row in rows[1:])]))
    assert OpenI(str(root)).cases().equals(expected)


@pytest.mark.parametrize("part", ["validation.csv", "images"])
def test_a_missing_part_is_named_with_the_command_that_makes_it(root, part):
    (root / part).rename(root / "elsewhere")
    with pytest.raises(UserError, match=f"{part}', which is not there.*fusionbench prepare.*openi.nlm.nih.gov"):
        OpenI(str(root)).cases()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        find_root(OpenI, str(tmp_path / "nowhere"))


def test_faults_of_the_tables_are_told(root):
    path = root / "test.csv"
    text = path.read_text()
    path.write_text(text.replace("Pleural_Other", "Pleural-Other", 1))
    with pytest.raises(UserError, match="no column 'Pleural_Other'; did you mean 'Pleural-Other'"):
        OpenI(str(root)).cases()
    rows = list(csv.reader(text.splitlines()))
    write_rows(path, [rows[0], [*rows[1][:-1], "2"]])
    with pytest.raises(UserError, match=r"findings of 'CXR300_IM-0000-1001\.png'.* must each be 0 or 1"):
        OpenI(str(root)).cases()
    write_rows(path, [rows[0], ["../CXR1_a.png", *rows[1][1:]]])
    with pytest.raises(UserError, match=r"'\.\./CXR1_a' is not named as Open-I's pictures are"):
        OpenI(str(root)).cases()


def test_a_study_is_what_stands_before_the_first_underscore():
    assert study_of("CXR1_1_IM-0001-3001") == "CXR1"
    assert study_of("CXR3999_IM-2049-1001") == "CXR3999"
