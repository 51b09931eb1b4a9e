"""FIVES: stems that repeat, the official test set, and a misspelt folder."""

import pytest
from layouts import make_fives

from fusionbench.data.fives import Fives
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

AMD = "age-related macular degeneration"


@pytest.fixture
def root(tmp_path):
    return make_fives(tmp_path)


def test_a_case_is_a_photograph_with_its_vessels(root):
    dataset = Fives(str(root))
    assert dict(dataset.modalities) == {"cfp": ModalitySpec("image", size=512)}
    assert dataset.classes == (AMD, "diabetic retinopathy", "glaucoma", "normal")
    cases = dataset.cases().set_index("case_id")
    assert len(cases) == 28
    assert cases.index.is_monotonic_increasing
    assert cases.loc["train_1_A", "cfp"] == (str(root / "train/Original/1_A.png"),)
    assert cases.loc["test_8_N", "vessels"] == (str(root / "test/Groud truth/8_N.png"),)
    assert [dataset.classes[cases.loc[name, "label"]][0] for name in ("test_1_A", "test_3_D", "test_5_G")] == [*"adg"]
    assert dataset.notes == []


def test_stems_repeat_in_train_and_test_and_are_other_cases(root):
    cases = Fives(str(root)).cases().set_index("case_id")
    assert cases.loc["train_1_A", "split"] in ("train", "val")
    assert cases.loc["test_1_A", "split"] == "test"
    assert (cases["group_id"] == cases.index).all()


def test_validation_is_a_share_of_each_class_in_train(root):
    cases = Fives(str(root), holdout=0.4).cases()
    assert cases["split"].value_counts().to_dict() == {"train": 12, "val": 8, "test": 8}
    assert cases[cases["split"] == "val"]["label"].value_counts().to_dict() == dict.fromkeys(range(4), 2)
    assert (cases["split"] == "test").eq(cases["case_id"].str.startswith("test")).all()


def test_the_choice_depends_on_the_seed_alone(root):
    assert Fives(str(root)).cases().equals(Fives(str(root)).cases())
    assert not Fives(str(root)).cases().equals(Fives(str(root), split_seed=1).cases())


def test_the_folder_above_does_as_well(root):
    assert Fives(str(root.parent)).cases().equals(Fives(str(root)).cases())


@pytest.mark.parametrize("name", ["Ground truth", "Ground Truth", "groud truth", "GROUND TRUTH"])
def test_the_folder_of_masks_is_found_whatever_its_case(tmp_path, name):
    cases = Fives(str(make_fives(tmp_path, masks=name))).cases()
    assert cases["vessels"].map(len).eq(1).all()


def test_a_lost_mask_is_no_mask_and_is_told(root):
    (root / "train/Groud truth/1_A.png").unlink()
    dataset = Fives(str(root))
    assert dataset.cases().set_index("case_id").loc["train_1_A", "vessels"] == ()
    assert dataset.notes == ["1 of 28 pictures of FIVES have no vessel mask"]


def test_files_of_the_system_are_not_pictures(root):
    (root / "train/Original/._1_A.png").touch()
    (root / "train/Original/Thumbs.db").touch()
    assert len(Fives(str(root)).cases()) == 28


def test_another_name_is_refused(root):
    (root / "train/Original/1_X.png").touch()
    with pytest.raises(UserError, match=r"1_X\.png' is not named as FIVES's pictures are.*A \(age-related"):
        Fives(str(root)).cases()


def test_a_missing_part_is_named(root):
    (root / "test").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"test/Original', which is not there.*19688169"):
        Fives(str(root)).cases()


def test_a_share_of_all_is_refused(root):
    with pytest.raises(UserError, match=r"data\.holdout"):
        Fives(str(root), holdout=1.0)
