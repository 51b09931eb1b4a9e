"""The integrity gate, as training and ``check`` meet it."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_near_copies import fundus

from fusionbench.data.check import check
from fusionbench.data.csv import Csv
from fusionbench.data.module import FusionData
from fusionbench.data.tables import TableEncoder
from fusionbench.errors import UserError

SPLITS = ["train"] * 8 + ["val"] * 4 + ["test"] * 4
NODES = {"photo": {"kind": "image", "column": "photo"}, "labs": {"kind": "table", "columns": ["age", "crp"]}}


@pytest.fixture
def make(tmp_path):
    """Write a csv of 16 patients, its columns changed, and return how to open it for training, or to check it."""
    for case in range(16):
        Image.fromarray(fundus(case, 96)).save(tmp_path / f"{case}.png")
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"case_id": [f"c{i:02d}" for i in range(16)], "group_id": [f"p{i:02d}" for i in range(16)]})
    table["split"], table["label"], table["photo"] = SPLITS, [0, 1] * 8, [f"{i}.png" for i in range(16)]
    table["age"], table["crp"] = rng.normal(60, 9, 16).round(1), rng.normal(5, 1, 16).round(3)

    def write(names=("photo", "labs"), **columns):
        table.assign(**columns).to_csv(tmp_path / "cases.csv", index=False)
        dataset = Csv(None, path=str(tmp_path / "cases.csv"), modalities={n: NODES[n] for n in names}, size=96)
        return dataset, tmp_path / "cache"

    return write


def train(made, **options):
    return FusionData(made[0], {}, 0, cache=str(made[1]), **options)


def refusal(made, **options):
    """Return the sentence of training, which check must say, too."""
    with pytest.raises(UserError) as error:
        train(made, **options)
    report = check(made[0], list(made[0].modalities), cache=made[1], **options)
    assert str(error.value) in [f.message for f in report.findings if f.severity == "error"]
    assert not report.ok
    return str(error.value)


def standardised(values, rows=slice(None)):
    return (values - values[rows].mean()) / values[rows].std()


def test_sound_data_pass_without_a_word(make):
    data = train(make())
    assert data.notes == []
    assert data.allowed == ()
    assert check(*make()[:1], ["photo", "labs"], cache=make()[1]).findings == ()


def test_a_picture_saved_anew_in_another_split_is_refused_with_both_cases(make, tmp_path):
    Image.open(tmp_path / "0.png").rotate(90).save(tmp_path / "12.jpg", quality=60)
    photos = [f"{i}.png" for i in range(12)] + ["12.jpg", "13.png", "14.png", "15.png"]
    made = make(photo=photos)
    assert refusal(made) == (
        f"1 pair of pictures looks the same in two splits, first '{tmp_path}/0.png' of case 'c00' (train) and "
        f"'{tmp_path}/12.jpg' of case 'c12' (test): keep one of each pair, or let it through with "
        "'data.allow=[near_duplicates]'"
    )
    data = train(made, allow=["near_duplicates", "statistics"])
    assert data.allowed == ("near_duplicates",)
    (note,) = data.notes
    assert note.endswith("case 'c12' (test): let through by data.allow, so scores may be too good")
    assert check(made[0], ["photo"], ["near_duplicates"], made[1]).ok


def test_pictures_are_compared_once(make, monkeypatch):
    first = train(make())
    monkeypatch.setattr("fusionbench.data.near_copies.near_copies", lambda *_: pytest.fail("compared again"))
    assert train(make(age=range(16)), num_workers=1).table.equals(train(make(age=range(16))).table)
    assert first.notes == []
    with pytest.raises(pytest.fail.Exception, match="compared again"):
        train(make(split=SPLITS[::-1]))


def test_a_column_standardised_over_all_cases_is_refused(make):
    rng = np.random.default_rng(1)
    values, codes = rng.normal(5, 2, 16), [-1, 1] * 8
    assert "1 table column is standardised over all cases and not over training alone, first 'crp':" in refusal(
        make(crp=standardised(values), age=codes)
    )
    assert train(make(crp=standardised(values)), allow=["statistics"]).allowed == ("statistics",)
    assert train(make(crp=standardised(values, slice(8)))).notes == []
    assert train(make(crp=codes, age=values)).notes == []
    gaps = standardised(np.where(np.arange(16) == 3, np.nan, values)[np.arange(16) != 3])
    assert "first 'crp'" in refusal(make(crp=np.insert(gaps, 3, np.nan)))


def test_validation_with_the_content_of_test_is_refused(make):
    ages = np.arange(16.0) + 0.5
    ages[8:12] = ages[12:16]
    made = make(names=["labs"], age=ages, crp=1.5)
    assert refusal(made) == (
        "validation equals test: 4 of 4 validation cases have the content of a test case, first 'c08' (val) is 'c12' "
        "(test); 'c09' (val) is 'c13' (test); 'c10' (val) is 'c14' (test); 'c11' (val) is 'c15' (test): hold "
        "validation cases out of training instead, or let it through with 'data.allow=[val_is_test]'"
    )
    assert train(made, allow=["val_is_test"]).allowed == ("val_is_test",)
    ages[8] = 99
    assert train(make(names=["labs"], age=ages, crp=1.5)).notes == []


def test_few_different_contents_are_no_equal_splits(make):
    assert train(make(names=["labs"], age=[1, 2, 3, 4] * 4, crp=1)).notes == []
    assert train(make(names=["labs"], age=[1, 2, 3, 4, 5, 6, 7, 8] + [9] * 8, crp=1)).notes == []


def test_a_patient_in_two_splits_is_never_let_through(make):
    made = make(group_id=["p"] * 16)
    assert "first 'p' in train, val, test: put all cases of a patient into one split" in refusal(made)
    with pytest.raises(UserError, match="cannot hold 'groups': a patient in two splits is never let through"):
        train(made, allow=["groups"])
    with pytest.raises(UserError, match="unknown word 'near_duplicate'; did you mean 'near_duplicates'"):
        train(made, allow=["near_duplicate"])


def test_what_is_known_of_an_official_split_is_a_warning(make, monkeypatch):
    monkeypatch.setattr(Csv, "known_leak", "the split is by eye")
    data = train(make(photo=[f"{i}.png" for i in range(12)] + ["0.png", "13.png", "14.png", "15.png"]))
    assert len(data.notes) == 1
    assert data.allowed == ()


def test_tables_are_encoded_by_the_training_cases_alone_or_not_trained_on(make):
    data = train(make())
    rows = [tuple(row) for row in data.table.loc[data.table["split"] == "train", "labs"]]
    assert data.tables["labs"].state == TableEncoder.fit(("age", "crp"), rows).state
    data.train_dataloader()
    everything = TableEncoder.fit(("age", "crp"), data.table["labs"].tolist())
    foreign = train(make(), fitted={"tables": {"labs": everything.state}})
    foreign.val_dataloader()
    with pytest.raises(UserError, match="table 'labs' is encoded by statistics that are not those of the 8 training"):
        foreign.train_dataloader()


def test_prediction_is_not_gated(make):
    fitted = train(make()).fitted()
    made = make(crp=standardised(np.arange(16.0) ** 2))
    assert train(made, fitted=fitted).notes == []


def test_pictures_too_plain_to_compare_are_noted(make, tmp_path):
    for case in (0, 12):
        Image.new("L", (96, 96), 10 + case).save(tmp_path / f"{case}.png")
    assert train(make()).notes == [
        "2 of 16 pictures are too plain to be told apart by their looks: only their files were compared"
    ]


def test_validation_that_is_test_is_told_once(make):
    photos = [f"{i}.png" for i in (*range(8), *range(12, 16), *range(12, 16))]
    ages = np.array([*range(8), *range(12, 16), *range(12, 16)]) + 0.5
    made = make(photo=photos, age=ages, crp=1.5)
    report = check(made[0], ["photo", "labs"], cache=made[1])
    assert [f.message[:22] for f in report.findings if f.severity == "error"] == ["validation equals test"]
    assert check(made[0], ["photo", "labs"], ["val_is_test"], made[1]).ok
    patients = [f"p{i}" for i in (*range(8), *range(12, 16), *range(12, 16))]
    made = make(photo=photos, age=ages, crp=1.5, group_id=patients)
    assert refusal(made).endswith("in val, test: hold other validation cases out of training")
    report = check(made[0], ["photo", "labs"], cache=made[1])
    assert [f.message[:20] for f in report.findings if f.severity == "error"] == ["4 groups (patients) "]
