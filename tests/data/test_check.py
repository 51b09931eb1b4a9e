import io
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from layouts import CSV_MODALITIES, make_csv, make_derm7pt, make_mmc_amd, make_mrnet
from rich.console import Console

from fusionbench.data.base import Dataset
from fusionbench.data.check import CheckReport, check, print_report, validate_table
from fusionbench.data.csv import Csv
from fusionbench.data.derm7pt import Derm7pt
from fusionbench.data.mmc_amd import MmcAmd
from fusionbench.data.mrnet import MRNet
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_HOME", str(tmp_path_factory.mktemp("home")))


def messages(report, severity):
    return [finding.message for finding in report.findings if finding.severity == severity]


@pytest.fixture
def photos(tmp_path):
    path = make_csv(tmp_path)
    return lambda: Csv(None, path=str(path), modalities=CSV_MODALITIES)


def test_sound_data_have_no_findings_and_right_counts(photos):
    report = check(photos(), ["photo", "scan", "notes", "labs"])
    assert report.findings == ()
    assert report.ok
    assert report.splits.loc["train"].to_dict() == {"cases": 24, "groups": 12, "healthy": 12, "ill": 12}
    assert report.splits.index.tolist() == ["train", "val", "test"]
    assert report.presence.loc["photo"].tolist() == [20, 10, 9]
    assert report.presence.loc["labs"].tolist() == [24, 12, 12]


def test_real_layouts_are_sound(tmp_path):
    for dataset in (
        MmcAmd(str(make_mmc_amd(tmp_path)), unpaired=True),
        Derm7pt(str(make_derm7pt(tmp_path))),
        MRNet(str(make_mrnet(tmp_path)), holdout=10),
    ):
        report = check(dataset, list(dataset.modalities))
        assert messages(report, "error") == []
        assert report.splits["cases"].gt(0).all()


def test_one_file_in_two_modalities_is_a_warning(tmp_path):
    report = check(Derm7pt(str(make_derm7pt(tmp_path))), ["clinical", "dermoscopic"])
    assert messages(report, "warning") == ["case '2' has the same file in two modalities; the case is kept"]
    assert report.ok


def test_missing_files_are_a_warning_and_unreadable_ones_an_error(photos, tmp_path):
    (tmp_path / "images/0.png").unlink()
    (tmp_path / "images/1.png").unlink()
    (tmp_path / "images/2.png").write_bytes(b"no picture")
    report = check(photos(), ["photo", "notes"])
    assert messages(report, "warning") == [
        f"2 files are missing, first '{tmp_path / 'images/0.png'}': its modality counts as absent"
    ]
    assert len(messages(report, "error")) == 1
    assert "1 file is unreadable" in messages(report, "error")[0]
    assert "2.png" in messages(report, "error")[0]
    assert report.presence.loc["photo", "train"] == 19  # case 0 has a second photo


def test_a_copy_in_another_split_is_an_error(photos, tmp_path):
    cases = photos().cases().set_index("case_id")
    source = cases.loc[cases["split"] == "train", "photo"].iloc[0][0]
    copy = cases.loc[cases["split"] == "test", "photo"].iloc[0][0]
    with open(source, "rb") as old, open(copy, "wb") as new:
        new.write(old.read())
    assert messages(check(photos(), ["photo"]), "error")[1:] == [
        f"1 file is identical in two splits, first '{source}' of case 'c000' (train) and "
        f"'{copy}' of case 'c012' (test): keep one of them, or let it through with 'data.allow=[copies]'"
    ]


def test_a_case_without_any_modality_is_an_error(photos):
    report = check(photos(), ["photo"])
    assert messages(report, "error") == ["9 cases, first 'c004', have no modality: none of photo is there"]
    assert not report.ok


def test_data_for_prediction_are_sound(tmp_path):
    (tmp_path / "new.csv").write_text("case_id,group_id,notes\na,p,text\n")
    dataset = Csv(
        str(tmp_path), path="new.csv", modalities={"notes": {"kind": "text", "column": "notes"}}, classes=["x"]
    )
    report = check(dataset, ["notes"])
    assert report.ok
    assert messages(report, "note") == ["no case has a label: these data can be predicted, not trained on"]


def test_an_eye_based_split_is_a_warning_that_says_so(tmp_path):
    root = make_mmc_amd(tmp_path, split="splitA")
    for kind, line in (("ImageSets", "{}-h-100-r"), ("annotations", "{}-h-100-r 0")):
        for modality, letter in (("cfp", "f"), ("oct", "o")):
            train = tmp_path / "mmc-amd-splitA-train" / kind / f"{modality}.txt"
            train.write_text(train.read_text().replace(line.format(letter) + "\n", ""))
            with (tmp_path / "mmc-amd-splitA-test" / kind / f"{modality}.txt").open("a") as file:
                file.write(line.format(letter) + "\n")
    report = check(MmcAmd(str(root), split="splitA"), ["cfp", "oct"])
    assert messages(report, "error") == []
    assert messages(report, "warning") == [
        "1 group (patient) is in more than one split, first '100' in train, test: the published splitA is by eye, "
        "so scores will be too good"
    ]


def test_an_unknown_modality_is_told_with_the_nearest(photos):
    with pytest.raises(UserError, match="Csv has no modality 'photos'; did you mean 'photo'"):
        check(photos(), ["photos"])


def test_the_report_is_printed_with_findings_whole(photos, tmp_path):
    (tmp_path / "images/0.png").unlink()
    stream = io.StringIO()
    print_report(check(photos(), ["photo"]), Console(file=stream, width=60))
    text = stream.getvalue()
    assert "healthy" in text
    assert f"warning: 1 file is missing, first '{tmp_path / 'images/0.png'}'" in text
    assert text.rstrip().endswith("1 error")


@dataclass
class Table(Dataset):
    """A case table that a test breaks."""

    table: pd.DataFrame
    multilabel: bool = False
    classes: tuple[str, ...] = ("x", "y")
    modalities: dict[str, ModalitySpec] = field(default_factory=lambda: {"notes": ModalitySpec("text")})

    def cases(self):
        return self.table


def sound(**columns):
    table = {
        "case_id": list("abcdef"),
        "group_id": list("abcdef"),
        "split": ["train", "train", "val", "val", "test", "test"],
        "label": [0, 1, 0, 1, 0, 1],
        "notes": ["text"] * 6,
    }
    return pd.DataFrame(table | columns)


def test_a_sound_table_passes():
    validate_table(Table(sound()), sound(), need_labels=True)


def test_cases_without_the_chosen_modalities_can_be_left_out():
    table = sound(notes=["text", "text", "text", "text", None, "text"])
    validate_table(Table(table), table, need_labels=True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (sound().drop(columns="split"), "no column 'split'"),
        (sound().drop(columns="label"), "no column 'label'"),
        (sound().drop(columns="notes"), "no column 'notes'"),
        (sound().iloc[:0], "the case table is empty"),
        (sound(split=["train"] * 4 + ["valid", "test"]), "unknown split 'valid'; did you mean 'val'"),
        (sound(case_id=list("abcdea")), "case id 'a' is there more than once"),
        (sound(group_id=list("abcdea")), "1 group .* first 'a' in train, test: put all cases of a patient"),
        (sound(group_id=list("abbbaa")), "2 groups .* first 'a' in train, test; 'b' in train, val: put all"),
        (sound(label=[0, 1, 2, 1, 0, 1]), "case 'c' has a label out of range: possible are 0 to 1"),
        (sound(label=[0, 1, 0.5, 1, 0, 1]), "case 'c' has a label out of range"),
    ],
)
@pytest.mark.parametrize("need_labels", [True, False])
def test_faults_that_stop_training_and_prediction(table, message, need_labels):
    with pytest.raises(UserError, match=message):
        validate_table(Table(table), table, need_labels=need_labels)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (sound(label=[0, 1, -1, 1, np.nan, 1]), "2 cases, first 'c', have no label"),
        (sound(split=["train"] * 4 + ["test"] * 2), "split 'val' is empty"),
        (sound(label=[0, 0, 0, 1, 0, 1]), "no training case is of class 'y'"),
    ],
)
def test_faults_that_stop_training_alone(table, message):
    with pytest.raises(UserError, match=message):
        validate_table(Table(table), table, need_labels=True)
    validate_table(Table(table), table, need_labels=False)


def test_one_class_alone_cannot_be_trained_on():
    dataset = Table(sound(label=0), classes=("x",))
    with pytest.raises(UserError, match="all cases are of class 'x': training needs two classes or more"):
        validate_table(dataset, dataset.table, need_labels=True)
    assert validate_table(dataset, dataset.table, need_labels=False) == []
    both = sound(x=[1, 0, 1, 0, 1, 0]).drop(columns="label")
    validate_table(Table(both, multilabel=True, classes=("x",)), both, need_labels=True)


def test_a_class_absent_from_test_is_a_warning():
    report = check(Table(sound(label=[0, 1, 0, 1, 0, 0])), ["notes"])
    assert report.ok
    assert messages(report, "warning") == ["no case in test is of class 'y': its scores there are undefined"]
    table = sound(label=[0, 1, 0, 1, 0, 0])
    assert validate_table(Table(table), table, need_labels=True) == list(report.findings)


def test_a_modality_that_no_training_case_has_is_an_error():
    table = sound(labs=[None, None, (1.0,), None, None, None])
    dataset = Table(table, modalities={"notes": ModalitySpec("text"), "labs": ModalitySpec("table", columns=("age",))})
    with pytest.raises(UserError, match="no training case has the modality 'labs'"):
        validate_table(dataset, table, need_labels=True)
    validate_table(dataset, table, need_labels=True, modalities=["notes"])


@pytest.mark.parametrize(
    ("y", "message"),
    [([1, 2, 0, 1, 0, 1], "case 'b' has a label out of range"), ([0] * 6, "no training case is of class 'y'")],
)
def test_multilabel_tables_are_checked_by_class(y, message):
    table = sound(x=[1, 0, 1, 0, 1, 0], y=y).drop(columns="label")
    with pytest.raises(UserError, match=message):
        validate_table(Table(table, multilabel=True), table, need_labels=True)


def test_a_table_too_wide_for_the_console_is_turned():
    names = [f"a long class name {index}" for index in range(14)]
    splits = pd.DataFrame(7, index=["train", "val", "test"], columns=["cases", "groups", *names])
    stream = io.StringIO()
    print_report(CheckReport((), splits, pd.DataFrame()), Console(file=stream, width=160))
    text = stream.getvalue()
    assert all(name in text for name in names)
    assert "…" not in text
    assert [line.split()[1] for line in text.splitlines() if "class name 3" in line] == ["a"]
    assert next(line for line in text.splitlines() if "train" in line).split("┃")[2].strip() == "train"
