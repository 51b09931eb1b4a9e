"""The DataModule: what it reads, refuses, learns and serves. Over 300 lines: one set of csv fixtures serves all."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import CSV_MODALITIES, make_csv, picture, save

from fusionbench.data.csv import Csv
from fusionbench.data.module import FusionData, choose_modalities
from fusionbench.errors import UserError


class Letters:
    """A tokenizer of letters, with a start and an end."""

    pad_id = 0

    def __call__(self, texts, max_length):
        return [[1, *(ord(letter) for letter in text[: max_length - 2]), 2] for text in texts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv")
    make_csv(folder, patients=16)
    return folder


@pytest.fixture
def open_data(folder, tmp_path):
    """Open the csv, its modalities and options chosen."""

    def make(*names, path=folder / "cases.csv", seed=0, fitted=None, dataset=None, **options):
        chosen = {name: CSV_MODALITIES[name] for name in names or CSV_MODALITIES}
        source = Csv(None, path=str(path), modalities=chosen, size=32, **(dataset or {}))
        cache = str(tmp_path / "cache")
        return FusionData(source, {"notes": Letters()}, seed, fitted, **{"batch_size": 4, "cache": cache} | options)

    return make


def changed(folder, name, change):
    """Write the csv again as a function changes its table, in place or by returning another; return its path."""
    table = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
    other = change(table)
    (table if other is None else other).to_csv(folder / name, index=False)
    return folder / name


def set_cell(case, column, value):
    def change(table):
        table.loc[table["case_id"] == case, column] = value

    return change


def case(data, case_id, split=None):
    """Return one case of a split's evaluation."""
    for batch in data.eval_dataloader(split):
        if case_id in batch.case_id:
            row = batch.case_id.index(case_id)
            return {name: value[row] for name, value in batch.inputs.items()}, batch.present[row], batch.target[row]
    return pytest.fail(f"there is no case {case_id}")


def test_the_problem_follows_from_the_data(open_data):
    data = open_data()
    assert list(data.problem.modalities) == ["photo", "scan", "notes", "labs"]
    assert data.problem.classes == ("healthy", "ill")
    assert not data.problem.multilabel
    assert not data.problem.complete
    assert open_data("scan", "notes").problem.complete
    assert data.problem.modalities["labs"].columns == ("age", "sex=female")
    assert data.counts().loc["train"].to_dict() == {"healthy": 8, "ill": 8}


def test_the_table_is_learned_from_the_training_cases_alone(open_data, folder):
    def change(table):
        table.loc[table["split"] != "train", "age"] = "1000"
        table.loc[table["split"] != "train", "sex"] = "other"

    data, altered = open_data("labs"), open_data("labs", path=changed(folder, "ages.csv", change))
    ages = data.table.loc[data.table["split"] == "train", "labs"].map(lambda row: row[0])
    age = data.tables["labs"].state[0]
    assert (age["mean"], age["std"]) == pytest.approx((ages.mean(), ages.std(ddof=0)))
    assert altered.tables["labs"].state == data.tables["labs"].state
    inputs, _, _ = case(altered, altered.table.loc[altered.table["split"] == "test", "case_id"].iloc[0], "test")
    assert inputs["labs"].tolist() == pytest.approx([(1000 - age["mean"]) / age["std"], 0])


def test_what_training_learned_is_used_in_prediction_and_survives_json(open_data, folder):
    fitted = json.loads(json.dumps(open_data().fitted()))
    keep = changed(folder, "one.csv", lambda table: table.head(1))
    once = open_data(path=keep, fitted=fitted, dataset={"classes": ["healthy", "ill"]})
    assert once.problem.modalities == open_data().problem.modalities
    new, old = case(once, "c000")[0], case(open_data(), "c000")[0]
    for name in new:
        assert torch.equal(new[name], old[name]), name


def test_a_missing_picture_is_absent_and_zeros(open_data):
    inputs, present, _ = case(open_data(), "c004")
    assert present.tolist() == [False, True, True, True]
    assert not inputs["photo"].any()
    inputs, present, target = case(open_data(), "c003")
    assert present.all()
    assert inputs["photo"].any()
    assert target == 1


def test_a_file_that_is_not_there_and_one_that_is_damaged_are_absent(folder, open_data, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy/images/1.png").unlink()
    (tmp_path / "copy/images/2.png").write_bytes(b"no picture")
    path = tmp_path / "copy" / "cases.csv"
    with pytest.raises(UserError, match=r"2\.png"):
        open_data(path=path)
    data = open_data(path=path, on_unreadable="missing")
    assert [case(data, name)[1][0].item() for name in ("c000", "c001", "c002", "c003")] == [True, False, False, True]
    assert data.notes == ["2 of 32 files of 'photo' are missing or unreadable"]


@pytest.fixture
def copied(folder, tmp_path):
    """The csv with the picture of a training case in a test case, too."""
    shutil.copytree(folder, tmp_path / "copied")
    shutil.copy(tmp_path / "copied/images/1.png", tmp_path / "copied/images/13.png")
    return tmp_path / "copied"


def test_a_picture_in_two_splits_is_refused_in_training_alone(open_data, copied):
    path = copied / "cases.csv"
    said = f"1 file is identical in two splits, first '{copied}/images/1.png' of case 'c001' (train) and "
    said += f"'{copied}/images/13.png' of case 'c013' (test): keep one of them, "
    said += "or let it through with 'data.allow=[copies]'"
    with pytest.raises(UserError) as error:
        open_data(path=path)
    assert str(error.value) == said
    open_data("scan", path=path)
    assert not open_data(path=path, fitted=open_data().fitted()).notes


def test_a_picture_in_two_splits_is_a_note_where_the_leak_is_known(open_data, copied, monkeypatch):
    monkeypatch.setattr(Csv, "known_leak", "the split is by eye")
    (note,) = open_data(path=copied / "cases.csv").notes
    assert note.startswith("1 file is identical in two splits")
    assert note.endswith("the split is by eye, so scores will be too good")


def test_a_picture_twice_in_a_split_is_sound(open_data, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "twice")
    shutil.copy(tmp_path / "twice/images/1.png", tmp_path / "twice/images/3.png")
    assert not open_data(path=tmp_path / "twice" / "cases.csv").notes


def test_warnings_of_the_table_are_noted(open_data, folder):
    def change(table):
        return table[(table["split"] != "test") | (table["label"] == "ill")]

    data = open_data("notes", path=changed(folder, "absent.csv", change))
    assert data.notes == ["no case in test is of class 'healthy': its scores there are undefined"]


def test_a_case_without_any_of_the_chosen_modalities_is_left_out(open_data):
    data = open_data("photo", "labs", modalities=["photo"])
    assert "c004" not in data.data.case_id
    assert len(data.table) == len(data.data.case_id) == 26
    assert data.notes == ["6 of 32 cases have none of photo: left out"]
    assert data.problem.complete


def test_several_pictures_of_a_case_the_first_in_evaluation_any_in_training(open_data, folder):
    plain = {"normalize": "none", "rotate": 0, "crop": 0, "flip_p": 0}
    plain |= dict.fromkeys(("contrast", "brightness", "saturation"))
    data = open_data("photo", transforms=plain, sampling="shuffle")
    first = case(data, "c000")[0]["photo"][0]
    loader, seen = data.train_dataloader(), set()
    for epoch in range(12):
        loader.sampler.set_epoch(epoch)
        drawn = [batch for batch in loader if "c000" in batch.case_id]
        seen |= {batch.inputs["photo"][batch.case_id.index("c000")].sum().item() for batch in drawn}
    assert first.sum().item() in seen
    assert len(seen) == 2


def test_text_is_cut_and_padded_by_its_tokenizer(open_data):
    data = open_data("notes", text_length=10)
    batch = next(iter(data.val_dataloader()))
    assert batch.inputs["notes"].shape == (4, 10)
    assert batch.inputs["notes"][0].tolist() == [1, *map(ord, "the eye "), 2]
    lengths = {batch.inputs["notes"].shape[1] for batch in open_data("notes").eval_dataloader(None)}
    assert max(lengths) > 30


def test_the_fingerprint_does_not_depend_on_where_files_lie(open_data, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    first, moved = open_data(), open_data(path=tmp_path / "moved" / "cases.csv", num_workers=2, batch_size=2)
    assert first.fingerprint == moved.fingerprint


@pytest.mark.parametrize(
    ("column", "value"),
    [("label", "ill"), ("group_id", "other"), ("notes", "nothing"), ("age", "41"), ("photo", ""), ("case_id", "c9")],
)
def test_the_fingerprint_changes_with_every_cell_of_use(open_data, folder, column, value):
    path = changed(folder, f"changed_{column}.csv", set_cell("c000", column, value))
    assert open_data(path=path).fingerprint != open_data().fingerprint


def test_the_fingerprint_changes_with_split_and_content(open_data, folder, tmp_path):
    def move(table):
        table.loc[table["group_id"] == "p00", "split"] = "val"

    assert open_data(path=changed(folder, "moved.csv", move)).fingerprint != open_data().fingerprint
    shutil.copytree(folder, tmp_path / "copy")
    save(tmp_path / "copy/images/0.png", picture(0, 999, classes=2))
    path = tmp_path / "copy" / "cases.csv"
    assert open_data(path=path).fingerprint != open_data().fingerprint
    assert open_data("notes", path=path).fingerprint == open_data("notes").fingerprint


def test_a_column_that_is_not_used_does_not_change_it(open_data, folder):
    path = changed(folder, "unused.csv", set_cell("c000", "notes", "nothing"))
    assert open_data("photo", "labs", path=path).fingerprint == open_data("photo", "labs").fingerprint


def batches(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(left, right):
    """Say whether two epochs are equal to the last bit."""
    return len(left) == len(right) and all(
        a.case_id == b.case_id and all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
        for a, b in zip(left, right, strict=True)
    )


def test_batches_depend_on_seed_and_epoch_and_not_on_workers(open_data):
    first = batches(open_data(), 3)
    assert same(first, batches(open_data(), 3))
    assert same(first, batches(open_data(num_workers=2), 3))
    assert not same(first, batches(open_data(), 4))
    assert not same(first, batches(open_data(seed=1), 3))


def test_evaluation_is_every_case_once_in_order_and_not_augmented(open_data):
    data = open_data()
    ids = [name for batch in data.eval_dataloader("test") for name in batch.case_id]
    assert ids == sorted(data.table.loc[data.table["split"] == "test", "case_id"])
    again = [batch.inputs["photo"] for batch in data.eval_dataloader("train")]
    assert all(torch.equal(a, b.inputs["photo"]) for a, b in zip(again, data.eval_dataloader("train"), strict=True))


def test_balanced_sampling_and_class_weights_follow_the_training_counts(open_data, folder):
    def change(table):
        rare = (table["split"] == "train") & (table["label"] == "ill") & (table["case_id"] > "c003")
        return table[~rare]

    data = open_data("notes", path=changed(folder, "rare.csv", change))
    counts = np.bincount([int(t) for batch in data.train_dataloader() for t in batch.target])
    assert counts.tolist() == [8, 8]
    assert data.class_weights().tolist() == pytest.approx([10 / (2 * 8), 10 / (2 * 2)])
    drawn = [name for batch in open_data("notes", sampling="shuffle").train_dataloader() for name in batch.case_id]
    assert len(drawn) == len(set(drawn)) == 16


def test_modalities_come_in_the_order_asked_for(open_data):
    data = open_data(modalities=["labs", "photo"])
    batch = next(iter(data.val_dataloader()))
    assert list(batch.inputs) == ["labs", "photo"]
    assert batch.present.shape == (4, 2)
    with pytest.raises(UserError, match="twice"):
        choose_modalities(data.dataset, ["labs", "labs"])
    with pytest.raises(UserError, match="did you mean 'labs'"):
        choose_modalities(data.dataset, ["lab"])
    with pytest.raises(UserError, match="is empty: name at least one of photo, scan, notes, labs"):
        choose_modalities(data.dataset, [])


@pytest.mark.parametrize("name", ["a.b", "2d", "keys", "a/b", ""])
def test_a_modality_has_a_name_that_a_network_can_hold(folder, name):
    dataset = Csv(None, path=str(folder / "cases.csv"), modalities={name: CSV_MODALITIES["notes"]})
    with pytest.raises(UserError, match="cannot be a modality's name"):
        choose_modalities(dataset, None)


def test_options_of_transforms_are_checked_before_any_file_is_read(open_data, folder):
    with pytest.raises(UserError, match="rotate=500 is out of range"):
        open_data(transforms={"rotate": 500})
