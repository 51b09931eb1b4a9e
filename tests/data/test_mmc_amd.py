import os
import shutil
from pathlib import Path

import pytest
from layouts import make_mmc_amd

from fusionbench.data.mmc_amd import MmcAmd
from fusionbench.errors import UserError

LISTS = "mmc-amd-splitAP-train"


@pytest.fixture
def root(tmp_path):
    return make_mmc_amd(tmp_path)


def test_a_case_is_an_eye_with_both_modalities(root):
    dataset = MmcAmd(str(root))
    cases = dataset.cases().set_index("case_id")
    assert list(dataset.modalities) == ["cfp", "oct"]
    assert len(cases) == 3 * 4 * 4
    assert cases["cfp"].map(len).eq(1).all()
    assert [Path(item).name for item in cases.loc["w-131-l", "oct"]] == [f"o-w-131-l_{i}.jpg" for i in range(3)]
    assert "cfp-clahe-448x448" in cases["cfp"].iloc[0][0]
    assert all(dataset.exists(item) for cell in cases["oct"] for item in cell)


def test_label_follows_the_annotation_in_the_class_order_of_ei(root):
    cases = MmcAmd(str(root)).cases()
    order = cases["case_id"].str[0].map({"h": 0, "d": 1, "p": 2, "w": 3})
    assert MmcAmd.classes == ("no_amd", "dry_amd", "pcv", "wet_amd")
    assert cases["label"].tolist() == order.tolist()


def test_both_eyes_of_a_patient_are_one_group_whatever_their_classes(root, tmp_path):
    for modality, letter in (("cfp", "f"), ("oct", "o")):
        with (tmp_path / LISTS / "ImageSets" / f"{modality}.txt").open("a") as file:
            file.write(f"{letter}-w-100-r\n")
        with (tmp_path / LISTS / "annotations" / f"{modality}.txt").open("a") as file:
            file.write(f"{letter}-w-100-r 3\n")
    groups = MmcAmd(str(root)).cases().set_index("case_id")["group_id"]
    assert set(groups[["h-100-l", "h-100-r", "w-100-r"]]) == {"100"}


def test_eyes_with_one_modality_are_cases_only_when_asked(root):
    cases = MmcAmd(str(root), unpaired=True).cases().set_index("case_id")
    assert len(cases) == 48 + 6
    assert cases.loc["h-091", "oct"] == ()
    assert cases.loc["w-092-r", "cfp"] == ()
    assert cases.loc["w-092-r", "group_id"] == "092"
    assert "h-091" not in set(MmcAmd(str(root)).cases()["case_id"])


def test_layout_and_split_of_ei_and_of_the_eye_based_release(tmp_path):
    ei = make_mmc_amd(tmp_path / "ei", layout="ei")
    item = MmcAmd(str(ei), layout="ei").cases()["oct"].iloc[0][0]
    assert Path(item).parent.name == "oct"
    by_eye = make_mmc_amd(tmp_path / "eye", split="splitA")
    assert len(MmcAmd(str(by_eye), split="splitA").cases()) == 48
    with pytest.raises(UserError, match="mmc-amd-splitAP-train"):
        MmcAmd(str(by_eye)).cases()


def test_split_folders_may_lie_in_the_root_or_beside_it(root, tmp_path):
    beside = MmcAmd(str(root)).cases()
    inside = MmcAmd(str(tmp_path)).cases()
    assert beside.equals(inside)


def test_a_picture_whose_extension_is_upper_case_is_found_and_a_lost_one_is_kept_as_missing(root):
    folder = root / "ImageData" / "cfp-clahe-448x448"
    os.rename(folder / "f-h-100-l.jpg", folder / "f-h-100-l.JPG")
    (folder / "f-h-101-l.jpg").unlink()
    dataset = MmcAmd(str(root))
    cells = dataset.cases().set_index("case_id")["cfp"]
    assert cells["h-100-l"] == (str(folder / "f-h-100-l.JPG"),)
    assert not dataset.exists(cells["h-101-l"][0])


def test_the_root_is_looked_for_below_fusionbench_data(root, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_DATA", str(tmp_path))
    assert len(MmcAmd(None).cases()) == 48


def test_without_the_folder_one_sentence_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"looked for in '.*nowhere'.*ImageData.*forms.gle.*data.root=FOLDER"):
        MmcAmd(str(tmp_path / "nowhere"))


def test_a_folder_of_the_other_layout_is_named(root):
    with pytest.raises(UserError, match="cfp-448x448"):
        MmcAmd(str(root), layout="ei").cases()


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("ImageSets", "f-x-1-l", "'f-x-1-l' .* is not named as"),
        ("ImageSets", "f-h-999-l", "'f-h-999-l' .* has no annotation"),
        ("annotations", "f-h-100-l 4", "gives 'f-h-100-l' the label '4'"),
        ("annotations", "f-h-100-l 1", "eye 'h-100-l' .* different labels"),
    ],
)
def test_broken_lists_are_told(root, tmp_path, file, line, message):
    with (tmp_path / LISTS / file / "cfp.txt").open("a") as lines:
        lines.write(line + "\n")
    with pytest.raises(UserError, match=message):
        MmcAmd(str(root)).cases()


def test_a_missing_list_is_named(root, tmp_path):
    shutil.rmtree(tmp_path / LISTS / "annotations")
    with pytest.raises(UserError, match=r"annotations/cfp\.txt"):
        MmcAmd(str(root)).cases()
