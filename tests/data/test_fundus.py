"""fundus: three datasets joined, healthy eyes, and what tells the label without looking at the eye."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from layouts import make_fundus

from fusionbench.build import check_modality_names
from fusionbench.data.fundus import Fundus
from fusionbench.data.module import FusionData
from fusionbench.data.texts import label_free
from fusionbench.errors import UserError
from fusionbench.registry import describe


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_fundus(tmp_path_factory.mktemp("fundus"))


class Letters:
    """A tokenizer of single letters."""

    pad_id = 0

    def __call__(self, texts, max_length):
        return [[ord(letter) % 97 + 1 for letter in text][:max_length] for text in texts]


def test_all_photographs_are_joined_with_what_they_have(root):
    dataset = Fundus(str(root))
    cases = dataset.cases().set_index("case_id")
    assert dataset.classes == ("acquired", "inherited")
    assert cases["source"].value_counts().to_dict() == {"hrf": 45, "stonerounds": 30, "fives": 28}
    assert cases["label"].value_counts().to_dict() == {0: 73, 1: 30}
    assert cases.groupby("source")["label"].unique().map(list).to_dict() == {
        "fives": [0],
        "hrf": [0],
        "stonerounds": [1],
    }
    assert cases.loc["stonerounds-SR0001_2", "group_id"] == "stonerounds-SR0001"
    assert cases.loc["fives-test_1_A", "split"] == "test"
    assert cases.loc["stonerounds-SR0001", "vessels"] == ()
    assert len(cases.loc["hrf-01_g", "vessels"]) == 1
    assert cases.loc["hrf-01_g", "text"] == ""
    assert cases.groupby("group_id")["split"].nunique().max() == 1


@pytest.mark.parametrize(
    ("normals", "counts", "classes"),
    [("acquired", {0: 73, 1: 30}, 2), ("drop", {0: 51, 1: 30}, 2), ("class", {0: 51, 1: 30, 2: 22}, 3)],
)
def test_healthy_eyes_go_where_they_are_sent(root, normals, counts, classes):
    dataset = Fundus(str(root), normals=normals)
    cases = dataset.cases()
    assert cases["label"].value_counts().to_dict() == counts
    assert len(dataset.classes) == classes
    assert list(cases.index) == list(range(len(cases)))


def test_it_says_that_the_source_tells_the_label(root):
    dataset = Fundus(str(root))
    dataset.cases()
    assert dataset.notes == [
        "the source alone tells the class of 100% of the cases, a constant guess 71%: scores say little",
        "whether there is a text alone tells the class of 95% of the cases, a constant guess 71%: scores say little",
    ]
    assert "confounded with the label" in describe("data", "fundus").doc


def test_some_sources_are_enough_and_each_that_is_named_must_be_there(root, tmp_path):
    shutil.copytree(root / "hrf", tmp_path / "hrf")
    shutil.copytree(root / "stonerounds", tmp_path / "stonerounds")
    with pytest.raises(UserError, match=r"fundus joins fives: .*which is not there.* or leave it out of data\.sources"):
        Fundus(str(tmp_path))
    assert len(Fundus(str(tmp_path), sources=["stonerounds", "hrf"]).cases()) == 75
    alone = Fundus(str(tmp_path), sources=["hrf"])
    assert list(alone.modalities) == ["cfp"]
    assert not Fundus(str(tmp_path), sources=["stonerounds"]).masks
    for sources, message in ((["hfr"], "'hfr'; did you mean 'hrf'"), ([], r"data\.sources is empty")):
        with pytest.raises(UserError, match=message):
            Fundus(str(tmp_path), sources=sources)


def test_without_stonerounds_it_says_where_texts_would_come_from(root):
    config = SimpleNamespace(encoder={"text": {}, "cfp": {}})
    with pytest.raises(UserError, match=r"'text', .*lacks: texts come from StoneRounds alone.* add stonerounds to"):
        check_modality_names(config, Fundus(str(root), sources=["fives", "hrf"]))
    check_modality_names(config, Fundus(str(root)))


def test_label_free_texts_name_no_disease(root):
    dataset = Fundus(str(root))
    assert label_free(["Stargardt disease of a child"], [*dataset.classes, *dataset.telling]) == ["of a child"]


def test_without_a_root_each_source_is_where_it_is_looked_for_alone(root, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_DATA", str(root))
    assert Fundus(None).cases().equals(Fundus(str(root)).cases())


def test_batches_hold_texts_and_masks_where_there_are_any(root, tmp_path):
    data = FusionData(
        Fundus(str(root), size=32), {"text": Letters()}, 0, cache=str(tmp_path), batch_size=200, masks=["vessels"]
    )
    batch = next(iter(data.eval_dataloader(None)))
    of_stonerounds = torch.tensor([name.startswith("stonerounds") for name in batch.case_id])
    assert torch.equal(batch.extras["vessels/present"], ~of_stonerounds)
    assert batch.extras["vessels"].flatten(1).any(1).equal(~of_stonerounds)
    assert not batch.present[~of_stonerounds, 1].any()
    assert any(note.startswith("the source alone") for note in data.notes)
