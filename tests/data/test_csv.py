import ast

import numpy as np
import pandas as pd
import pytest
from layouts import CSV_MODALITIES, make_csv, save, write_rows

from fusionbench.data.check import check
from fusionbench.data.csv import Csv
from fusionbench.data.masks import choose_masks
from fusionbench.errors import UserError
from fusionbench.registry import describe
from fusionbench.types import ModalitySpec

NOTES = {"notes": {"kind": "text", "column": "notes"}}


def rows(folder, header, *lines):
    """Write a csv from lines with commas and return a function that opens it."""
    path = write_rows(folder / "mine.csv", [header.split(","), *(line.split(",") for line in lines)])
    return lambda **options: Csv(None, path=str(path), **{"modalities": NOTES} | options)


def test_a_made_csv_is_read_whole(tmp_path):
    dataset = Csv(str(tmp_path), path=make_csv(tmp_path).name, modalities=CSV_MODALITIES, size=64)
    cases = dataset.cases()
    assert list(cases) == ["case_id", "group_id", "split", "label", "photo", "scan", "notes", "labs"]
    assert dataset.classes == ("healthy", "ill")
    assert dataset.modalities["photo"] == ModalitySpec("image", size=64, instances=1)
    assert dataset.modalities["scan"] == ModalitySpec("slices", size=64, instances=2)
    assert dataset.modalities["labs"].columns == ("age", "sex")
    first, fifth = cases.iloc[0], cases.iloc[4]
    assert first["photo"] == (str(tmp_path / "images/0.png"), str(tmp_path / "images/0b.jpg"))
    assert first["labs"] == (40.0, None)
    assert fifth["photo"] == ()
    assert fifth["labs"] == (44.0, "female")
    assert dataset.read_image(first["photo"][0]).shape == (48, 48, 3)
    assert dataset.read_image(first["scan"][0]).shape == (6, 48, 48)
    assert cases.groupby("group_id")["split"].nunique().eq(1).all()


def test_options_can_be_read_from_the_source():
    options = describe("data", "csv").options
    assert options["path"].required
    assert options["fractions"].default == (0.7, 0.1, 0.2)
    assert all(ast.parse(option.annotation) for option in options.values())


def test_cases_are_sorted_and_do_not_depend_on_row_order(tmp_path):
    lines = [f"c{i:02d},p{i // 2},{'ab'[i // 2 % 2]},text" for i in range(40)]
    table = rows(tmp_path / "1", "case_id,group_id,label,notes", *lines)().cases()
    again = rows(tmp_path / "2", "case_id,group_id,label,notes", *reversed(lines))().cases()
    pd.testing.assert_frame_equal(table, again)
    assert set(table["split"]) == {"train", "val", "test"}


def test_without_a_group_each_case_is_its_own_with_a_warning(tmp_path):
    make = rows(tmp_path, "case_id,split,label,notes", "a,train,x,t", "b,val,y,t")
    with pytest.warns(UserWarning, match="own patient"):
        cases = make().cases()
    assert cases["group_id"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("labels", "options", "classes", "expected"),
    [
        (["b", "a", ""], {}, ("a", "b"), [1, 0, -1]),
        (["b", "-1", " a "], {}, ("a", "b"), [1, -1, 0]),
        (["b", "a", "-1"], {"classes": ["b", "a"]}, ("b", "a"), [0, 1, -1]),
        (["2", "0.0", "1"], {}, ("0", "1", "2"), [2, 0, 1]),
        (["1", "0", "x"], {"classes": ["x", "y"]}, ("x", "y"), [1, 0, 0]),
        (["3", "1", "2"], {"classes": ["1", "2", "3"]}, ("1", "2", "3"), [2, 0, 1]),
        (["", "", ""], {}, (), [-1, -1, -1]),
    ],
)
def test_labels_are_names_or_numbers(tmp_path, labels, options, classes, expected):
    lines = [f"{i},{i},train,{label},t" for i, label in enumerate(labels)]
    dataset = rows(tmp_path, "case_id,group_id,split,label,notes", *lines)(**options)
    assert dataset.classes == classes
    assert dataset.cases()["label"].tolist() == expected


def test_without_labels_all_cases_are_test(tmp_path):
    cases = rows(tmp_path, "case_id,group_id,notes", "a,p,t", "b,q,t")(classes=["x", "y"]).cases()
    assert cases["label"].tolist() == [-1, -1]
    assert cases["split"].tolist() == ["test", "test"]


def test_several_targets_are_multilabel(tmp_path):
    make = rows(tmp_path, "case_id,group_id,split,acl,tear,notes", "a,p,train,1,0,t", "b,q,val,,-1,t")
    dataset = make(targets=["tear", "acl"])
    assert dataset.multilabel
    assert dataset.classes == ("tear", "acl")
    assert dataset.cases()[["tear", "acl"]].to_numpy().tolist() == [[0, 1], [-1, -1]]
    with pytest.raises(UserError, match="exclude each other"):
        make(targets=["acl"], classes=["x"])
    with pytest.raises(UserError, match="no column 'acll'; did you mean 'acl'"):
        make(targets=["acll", "tear"])


def test_multilabel_split_keeps_the_rare_class_everywhere(tmp_path):
    lines = [f"c{i},p{i},{int(i % 10 == 0)},{i % 2},t" for i in range(60)]
    cases = rows(tmp_path, "case_id,group_id,rare,often,notes", *lines)(targets=["often", "rare"]).cases()
    assert (cases.groupby("split")["rare"].sum() > 0).all()
    assert cases["split"].nunique() == 3


def test_a_table_is_columns_a_prefix_or_a_json_list(tmp_path):
    header = ["case_id", "group_id", "split", "label", "t.age", "t.sex", "list"]
    lines = [["a", "p", "train", "x", "63", "NA", '[1, "m", null]'], ["b", "q", "val", "y", "", "", ""]]
    path = write_rows(tmp_path / "mine.csv", [header, *lines])
    modalities = {
        "columns": {"kind": "table", "columns": ["t.sex", "t.age"]},
        "prefix": {"kind": "table", "prefix": "t."},
        "json": {"kind": "table", "column": "list"},
    }
    dataset = Csv(None, path=str(path), modalities=modalities)
    cases = dataset.cases()
    assert {name: spec.columns for name, spec in dataset.modalities.items()} == {
        "columns": ("t.sex", "t.age"),
        "prefix": ("t.age", "t.sex"),
        "json": ("list.0", "list.1", "list.2"),
    }
    assert cases["columns"].tolist() == [(None, 63.0), None]
    assert cases["prefix"].tolist() == [(63.0, None), None]
    assert cases["json"].tolist() == [(1.0, "m", None), None]


def test_a_column_with_a_word_is_categorical_as_a_whole(tmp_path):
    header = "case_id,group_id,split,label,stage"
    make = rows(tmp_path, header, "a,p,train,x,2", "b,q,val,y,2b", "c,r,test,y,nan")
    cells = make(modalities={"t": {"kind": "table", "columns": ["stage"]}}).cases()["t"]
    assert cells.tolist() == [("2",), ("2b",), None]


def test_paths_may_be_absolute_and_the_file_may_have_a_byte_order_mark(tmp_path):
    path = tmp_path / "bom.csv"
    path.write_text("case_id,group_id,split,label,image\na,p,train,x, /far/a.png | b.png \n", encoding="utf-8-sig")
    dataset = Csv(None, path=str(path), modalities={"photo": {"kind": "image", "column": "image"}})
    assert dataset.cases()["photo"][0] == ("/far/a.png", str(tmp_path / "b.png"))


PHOTO = {"photo": {"kind": "image", "column": "image", "masks": {"vessels": "drawn"}}}


def test_masks_lie_in_columns_that_their_picture_names(tmp_path):
    make = rows(tmp_path, "case_id,group_id,split,label,image,drawn", "a,p,train,x,a.png, m/a.png", "b,q,val,y,b.png,")
    dataset = make(modalities=PHOTO)
    assert dataset.masks == {"vessels": "photo"}
    cases = dataset.cases()
    assert list(cases)[-2:] == ["photo", "vessels"]
    assert cases["vessels"].tolist() == [(str(tmp_path / "m/a.png"),), ()]
    assert "masks: {vessels: vessel_file}" in describe("data", "csv").doc


def test_a_column_of_masks_is_missed_only_by_who_reads_it(tmp_path):
    dataset = rows(tmp_path, "case_id,group_id,split,label,image,drwn", "a,p,train,x,a.png,m.png")(modalities=PHOTO)
    assert dataset.masks == {}
    assert "vessels" not in dataset.cases()
    assert choose_masks(dataset, ["photo"], None) == {}
    with pytest.raises(
        UserError, match=r"data\.masks names 'vessels', but '.*' has no column 'drawn'; did you mean 'drwn'"
    ):
        choose_masks(dataset, ["photo"], ["vessels"])


def test_masks_of_a_csv_are_checked_as_all_are(tmp_path):
    for name, shape in (("a", (20, 20, 3)), ("b", (20, 20, 3)), ("ma", (20, 20)), ("mb", (20, 10))):
        save(tmp_path / f"{name}.png", np.random.default_rng(len(shape)).integers(0, 255, shape, np.uint8))
    lines = ("a,p,train,x,a.png,ma.png", "b,q,val,y,b.png,mb.png", "c,r,test,y,a.png,")
    dataset = rows(tmp_path, "case_id,group_id,split,label,image,drawn", *lines)(modalities=PHOTO, size=8)
    report = check(dataset, ["photo"], cache=tmp_path / "cache")
    told = [finding.message for finding in report.findings if "mb.png" in finding.message]
    assert len(told) == 1
    assert "has 10 x 20 pixels and its picture" in told[0]


GOOD = ("case_id,group_id,split,label,notes", "a,p,train,x,t", "b,q,val,y,t")


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (("case,group_id,notes", "a,p,t"), {}, "no column 'case_id'; did you mean 'case'"),
        ((*GOOD, "a,r,test,x,t"), {}, "case 'a' is in .* more than once"),
        ((*GOOD, ",r,test,x,t"), {}, "row 3 of .* has no 'case_id'"),
        ((*GOOD, "c,,test,x,t"), {}, "case 'c' has no 'group_id'"),
        ((*GOOD, "c,r,valid,x,t"), {}, "'split' of case 'c' is 'valid'; did you mean 'val'"),
        ((*GOOD, "c,r,,x,t"), {}, "'split' of case 'c' is ''; possible are: test, train, val"),
        (GOOD, {"group": "patients"}, "no column 'patients'"),
        (GOOD, {"split": "fold"}, "no column 'fold'"),
        (GOOD, {"classes": ["x", "z"]}, "label 'y' of case 'b' is out of range; possible are: x, z"),
        (
            (*GOOD, "c,r,test,5,t"),
            {"classes": ["x", "y"]},
            "label '5' of case 'c' is out of range; possible are 0 to 1",
        ),
        ((*GOOD, "c,r,test,-2,t"), {"classes": ["x", "y"]}, "label '-2' of case 'c' is out of range"),
        (("case_id,group_id,acl,notes", "a,p,2,t"), {"targets": ["acl"]}, "'acl' of case 'a' is '2', out of range"),
        (GOOD, {"modalities": {}}, "modalities is empty"),
        (GOOD, {"modalities": {"m": {"column": "notes"}}}, "modality 'm' has no kind: state one of image"),
        (GOOD, {"modalities": {"m": {"kind": "txt"}}}, "unknown kind 'txt'; did you mean 'text'"),
        (GOOD, {"modalities": {"m": {"kind": "text", "colum": "notes"}}}, "no key 'colum'; did you mean 'column'"),
        (GOOD, {"modalities": {"m": {"kind": "text"}}}, "modality 'm' has no column"),
        (GOOD, {"modalities": {"m": {"kind": "text", "column": "note"}}}, "no column 'note'; did you mean 'notes'"),
        (GOOD, {"modalities": {"m": {"kind": "table", "columns": ["age"]}}}, "no column 'age'"),
        (GOOD, {"modalities": {"m": {"kind": "table", "prefix": "t."}}}, "table 'm' has no columns"),
        (GOOD, {"modalities": {"m": {"kind": "table"}}}, "exactly one of column, columns and prefix"),
        (GOOD, {"modalities": {"m": {"kind": "table", "column": "notes"}}}, "is 't', which is no JSON list"),
        (GOOD, {"modalities": {"label": {"kind": "text", "column": "notes"}}}, "cannot be called 'label'"),
        (("case_id,group_id,notes",), {}, "has a header but no case"),
        (("case_id;group_id;notes", "a;p;t"), {}, "no column 'case_id'; is it separated by ';'[?]"),
        (GOOD, {"targets": []}, "data.targets is empty: name the columns"),
        (
            GOOD,
            {"modalities": {"m": {"kind": "image", "column": "notes", "masks": "notes"}}},
            "'masks' of modality 'm' must be {name of the mask: the csv's column",
        ),
        (
            GOOD,
            {"modalities": {"m": {"kind": "image", "column": "notes", "masks": {"label": "notes"}}}},
            "a mask of 'm' cannot be called 'label'",
        ),
        (
            GOOD,
            {"modalities": {"m": {"kind": "slices", "column": "notes", "masks": {"v": "notes"}}}},
            "modality 'm' of kind 'slices' has no key 'masks'",
        ),
    ],
)
def test_every_mistake_is_one_sentence(tmp_path, lines, options, message):
    make = rows(tmp_path, *lines)
    with pytest.raises(UserError, match=message) as error:
        make(**options).cases()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "'data.size' must be at least 1, not 0"),
        ({"split_seed": -1}, "'data.split_seed' must lie in 0 to 4294967295, not -1"),
        ({"split_seed": 2**32}, "'data.split_seed' must lie in 0 to 4294967295, not 4294967296"),
        ({"modalities": {"m": "photo"}}, "modality 'm' must be {kind: ..., column: ...}, not 'photo'"),
        (
            {"modalities": {"m": {"kind": "image", "column": "notes", "size": "big"}}},
            "'size' of modality 'm' must be a whole number of at least 1, not 'big'",
        ),
        (
            {"modalities": {"m": {"kind": "slices", "column": "notes", "instances": 0}}},
            "'instances' of modality 'm' must be a whole number of at least 1, not 0",
        ),
        (
            {"modalities": {"m": {"kind": "image", "column": "notes", "size": True}}},
            "'size' of modality 'm' must be a whole number of at least 1, not True",
        ),
        (
            {"modalities": {"m": {"kind": "text", "column": 5}}},
            "'column' of modality 'm' must be text, in quotes if it is a number, not 5",
        ),
        (
            {"modalities": {"m": {"kind": "table", "columns": 5}}},
            "'columns' of modality 'm' must be a list of the csv's columns, each as text, not 5",
        ),
        ({"modalities": {"m": {"kind": "table", "columns": []}}}, "a list of the csv's columns, each as text, not []"),
        ({"modalities": {"m": {"kind": ["image"]}}}, "modality 'm' is of unknown kind '['image']'"),
    ],
)
def test_options_are_checked_before_the_file_is_looked_for(options, message):
    with pytest.raises(UserError) as error:
        Csv(None, **{"path": "/nowhere/cases.csv", "modalities": NOTES} | options)
    assert message in str(error.value)


def test_lists_of_different_length_are_refused(tmp_path):
    path = write_rows(tmp_path / "mine.csv", [["case_id", "group_id", "l"], ["a", "p", "[1]"], ["b", "q", "[1, 2]"]])
    with pytest.raises(UserError, match=r"differ in length .1 to 2 values"):
        Csv(None, path=str(path), modalities={"t": {"kind": "table", "column": "l"}})


def test_two_volumes_in_a_cell_are_refused(tmp_path):
    make = rows(tmp_path, "case_id,group_id,split,label,notes", "a,p,train,x,1.npy|2.npy")
    with pytest.raises(UserError, match="one volume a case"):
        make(modalities={"m": {"kind": "slices", "column": "notes"}}).cases()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"1,2\n'])
def test_what_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(UserError, match="could not be read as a comma-separated table"):
        Csv(str(tmp_path), path="bad.csv", modalities=NOTES)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file '.*gone\.csv'"):
        Csv(str(tmp_path), path="gone.csv", modalities=NOTES)
