"""StoneRounds: our csv, second photographs, and types from the csv or from the table of diseases."""

import pandas as pd
import pytest
from layouts import make_stonerounds

from fusionbench.data.diseases import DISEASES, TYPES, type_of
from fusionbench.data.stonerounds import StoneRounds
from fusionbench.data.texts import TextReader
from fusionbench.data.validate import validate_table
from fusionbench.errors import UserError


@pytest.fixture
def root(tmp_path):
    return make_stonerounds(tmp_path)


@pytest.fixture
def change(root):
    """Set cells of the first row of the csv."""

    def edit(**cells):
        table = pd.read_csv(root / "stonerounds.csv", dtype=str, keep_default_na=False)
        for column, value in cells.items():
            table.loc[0, column] = value
        table.to_csv(root / "stonerounds.csv", index=False)

    return edit


def test_a_case_is_a_photograph_with_its_text(root):
    dataset = StoneRounds(str(root))
    assert dataset.classes == ("ar retinitis pigmentosa", "best disease", "choroideremia")
    assert {name: spec.kind for name, spec in dataset.modalities.items()} == {"cfp": "image", "text": "text"}
    cases = dataset.cases().set_index("case_id")
    assert len(cases) == 30
    assert cases.loc["SR0001_2", "cfp"] == (str(root / "images/SR0001_2.jpg"),)
    assert cases.loc["SR0002", "text"] == "A 21 year old reader of letters, seen 1 times."
    assert cases.loc["SR0005", "text"] == ""
    assert dataset.classes[cases.loc["SR0002", "label"]] == "ar retinitis pigmentosa"


def test_a_second_photograph_is_of_the_same_group_and_split(root):
    for seed in range(4):
        cases = StoneRounds(str(root), split_seed=seed).cases()
        assert set(cases.loc[cases["case_id"].str.startswith("SR0001"), "group_id"]) == {"SR0001"}
        assert cases.groupby("group_id")["split"].nunique().max() == 1
        assert cases["group_id"].nunique() == 24
        assert cases["split"].nunique() == 3


def test_an_empty_type_follows_from_the_table(root):
    dataset = StoneRounds(str(root), target="type")
    assert dataset.classes == TYPES
    assert set(dataset.cases()["label"]) == {1}
    assert list(dataset.notes) == []


def test_an_unknown_disease_needs_its_type(change, root):
    change(disease="Blue Eyes")
    with pytest.raises(UserError, match=r"'SR0001\.jpg' no type.* 'Blue Eyes' is not in fusionbench's table: write"):
        StoneRounds(str(root), target="type")
    assert "blue eyes" in StoneRounds(str(root)).classes
    change(type="acquired")
    dataset = StoneRounds(str(root), target="type")
    assert dataset.cases().set_index("case_id").loc["SR0001", "label"] == 0
    assert dataset.notes == [
        "1 disease of stonerounds.csv is not in fusionbench's table, first 'Blue Eyes': the label is the type that the "
        "csv states"
    ]


def test_a_misspelt_disease_is_told_with_the_one_that_was_meant(change, root):
    change(disease="Best Diseese", type="")
    with pytest.raises(UserError, match=r"table \(did you mean 'best disease'\?\): write acquired or inherited"):
        StoneRounds(str(root), target="type")


def test_the_type_in_the_csv_counts_more_than_the_table(change, root):
    change(type="Acquired")
    dataset = StoneRounds(str(root), target="type")
    assert dataset.cases().set_index("case_id").loc["SR0001", "label"] == 0
    assert dataset.notes[0].startswith("1 row of stonerounds.csv states another type than fusionbench's table has")


def test_without_disease_and_type_the_label_is_unknown(change, root):
    change(disease="", type="")
    for target in ("type", "disease"):
        dataset = StoneRounds(str(root), target=target)
        assert dataset.cases().set_index("case_id").loc["SR0001", "label"] == -1
        with pytest.raises(UserError, match=r"case 'SR0001' has no label: check its 'disease'.* in stonerounds\.csv"):
            validate_table(dataset, dataset.cases(), need_labels=True)


def test_label_free_texts_of_a_type_name_no_disease(change, root):
    change(text="Best disease, inherited by the father; autosomal recessive Blue Eyes", disease="Blue Eyes")
    change(type="inherited")
    dataset = StoneRounds(str(root), target="type")
    table, _ = TextReader("label_free").read(dataset, dataset.cases(), ["text"])
    assert table.set_index("case_id").loc["SR0001", "text"] == ", by the father;"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"type": "inherted"}, "'inherted'; did you mean 'inherited'"),
        ({"image": "photo1.jpg"}, r"'photo1\.jpg' in stonerounds\.csv is not named after its case"),
        ({"image": ""}, "is not named after its case"),
    ],
)
def test_wrong_cells_are_refused(change, root, cells, message):
    change(**cells)
    with pytest.raises(UserError, match=message):
        StoneRounds(str(root), target="type").cases()


def test_a_missing_column_and_a_missing_part_are_named(root):
    path = root / "stonerounds.csv"
    path.write_text(path.read_text().replace("disease,", "diseases,", 1))
    with pytest.raises(UserError, match="no column 'disease'; did you mean 'diseases'"):
        StoneRounds(str(root))
    path.unlink()
    with pytest.raises(UserError, match=r"stonerounds\.csv', which is not there.*stonerounds\.org"):
        StoneRounds(str(root))


@pytest.mark.parametrize("name", ["../../out/SR0002.png", "/SR0002.jpg", "images/SR0001.jpg"])
def test_a_photograph_lies_in_images_and_nowhere_else(change, root, name):
    change(image=name)
    with pytest.raises(UserError, match=rf"'{name}' in stonerounds\.csv has a folder: give the name of a file"):
        StoneRounds(str(root)).cases()


@pytest.mark.parametrize(
    ("disease", "kind"),
    [
        ("AD optic atrophy", "inherited"),
        ("ad pattern dystrophy", "inherited"),
        ("XL retinoschisis", "inherited"),
        ("AR Usher syndrome", "inherited"),
        ("autosomal recessive something", "inherited"),
        ("AD something", None),
        ("AR related retinal vasculitis", None),
        ("AR diabetic retinopathy", None),
        ("autosomal dominant glaucoma", None),
    ],
)
def test_a_mode_of_inheritance_counts_before_what_can_be_inherited(disease, kind):
    assert type_of(disease) == kind


def test_names_are_read_as_people_write_them(root):
    assert type_of("Best  Disease") == type_of("AR Retinitis Pigmentosa") == type_of("Xl-Choroideremia") == "inherited"
    assert type_of("Glaucoma") == "acquired"
    assert type_of("") is type_of("normal") is type_of("AR") is type_of("arteritis") is None
    assert all(kind in TYPES and source for kind, source in DISEASES.values())
