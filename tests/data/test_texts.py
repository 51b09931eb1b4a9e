"""What is read of texts: each content, the texts that change hands, what is missing, and where texts are cut."""

import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
from layouts import CSV_MODALITIES, make_csv

from fusionbench import config
from fusionbench.data import texts
from fusionbench.data.check import check
from fusionbench.data.csv import Csv
from fusionbench.data.module import FusionData
from fusionbench.data.texts import TextReader, findings, label_free, label_words, shuffle_words
from fusionbench.errors import UserError

CLASSES = ("No-Finding", "Lung-Opacity", "Pleural_Effusion", "Support Devices", "Edema")


class Letters:
    """A tokenizer of letters, with a start and an end, which counts how often it is called."""

    pad_id = 0

    def __init__(self):
        self.calls = 0

    def __call__(self, texts, max_length):
        self.calls += 1
        return [[1, *(ord(letter) for letter in text[: max_length - 2]), 2] for text in texts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv")
    make_csv(folder, patients=16)
    return folder


@pytest.fixture
def dataset(folder):
    """Return a function that opens the csv, its table changed."""

    def make(change=None, names=("notes", "labs")):
        table = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
        if change is not None:
            change(table)
        path = folder / "changed.csv"
        table.to_csv(path, index=False)
        return Csv(None, path=str(path), modalities={name: CSV_MODALITIES[name] for name in names}, size=32)

    return make


def read(source, content):
    return TextReader(content).read(source, source.cases(), source.modalities)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("FINDINGS : clear lungs . IMPRESSION : normal", "clear lungs ."),
        ("Indication: cough. Findings:clear lungs\nno effusion impression: normal", "clear lungs\nno effusion"),
        ("findings: clear", "clear"),
        ("clear. IMPRESSION: normal", "clear."),
        ("IMPRESSION: normal", ""),
        ("IMPRESSION: normal. FINDINGS: clear", "clear"),
        ("the findings are clear, no impression", "the findings are clear, no impression"),
        ("FINDINGS : IMPRESSION : normal", ""),
    ],
)
def test_findings_are_what_stands_between_the_headings(text, part):
    assert findings(text) == part


def test_the_words_of_class_names_are_theirs_but_for_no():
    assert label_words(CLASSES) == {"finding", "lung", "opacity", "pleural", "effusion", "support", "devices", "edema"}
    assert label_words(["melanoma (in situ)", "Crohn's disease"]) == {"melanoma", "in", "situ", "crohn's", "disease"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("No pleural effusion.", "no ."),
        ("Left-lung EDEMA, and (lung) opacity/effusion; no finding", "left- , and () /; no"),
        ("lung-base opacity", "base"),
        ("lung_opacity in both lungs with opacities", "in both lungs with opacities"),
        ("Lung opacity.", ""),
        ("heart  is\tNORMAL", "heart is normal"),
        ("No-Finding", "no-"),
    ],
)
def test_label_free_texts_hold_no_word_of_a_class_name(text, left):
    assert label_free([text], CLASSES) == [left]


def test_classes_without_words_leave_texts_whole():
    assert label_free(["No change"], ["no", "--"]) == ["no change"]


def test_shuffled_words_are_the_same_words_in_an_order_that_processes_share():
    text = "the heart is normal in size and the lungs are clear"
    made = shuffle_words(text)
    assert made != text
    assert Counter(made.split()) == Counter(text.split())
    code = f"from fusionbench.data.texts import shuffle_words; print(shuffle_words({text!r}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == made


def test_shuffled_texts_are_those_of_other_patients_of_the_split(dataset):
    def empty(table):
        table.loc[[0, 9, 21], "notes"] = ""

    source = dataset(empty)
    before = source.cases()
    after, notes = read(source, "shuffled")
    group = dict(zip(before["notes"], before["group_id"], strict=True))
    split = dict(zip(before["notes"], before["split"], strict=True))
    there = after["notes"] != ""
    assert there.tolist() == before["notes"].fillna("").ne("").tolist()
    assert sorted(after.loc[there, "notes"]) == sorted(before.loc[there, "notes"])
    assert (after.loc[there, "notes"].map(group) != after.loc[there, "group_id"]).all()
    assert (after.loc[there, "notes"].map(split) == after.loc[there, "split"]).all()
    assert notes == ["3 of 32 texts of 'notes' are missing"]
    pd.testing.assert_frame_equal(after, read(source, "shuffled")[0])


@pytest.mark.parametrize(("largest", "own"), [(2, 0), (3, 0), (4, 2), (6, 6)])
def test_a_patient_with_most_of_a_split_keeps_as_few_texts_as_can_be(dataset, largest, own):
    source = dataset()
    table = pd.DataFrame(
        {
            "group_id": ["a"] * largest + [f"b{i}" for i in range(6 - largest)],
            "split": "test",
            "notes": [f"text {i}" for i in range(6)],
        }
    )
    after, notes = TextReader("shuffled").read(source, table, ["notes"])
    owner = dict(zip(table["notes"], table["group_id"], strict=True))
    assert (after["notes"].map(owner) == table["group_id"]).sum() == own
    said = [f"{own} texts of 'notes' could not be given to another patient of their split"]
    assert notes == (said if own else [])


@pytest.mark.parametrize("splits", [[None] * 6, [float("nan")] * 6, ["test"] * 3 + [None] * 3])
def test_cases_without_a_split_change_texts_among_themselves(dataset, splits):
    given = [f"text {i}" for i in range(6)]
    table = pd.DataFrame({"group_id": list("abcdef"), "split": splits, "notes": given})
    after, notes = TextReader("shuffled").read(dataset(), table, ["notes"])
    assert not notes
    owner, had = (dict(zip(given, map(str, table[name]), strict=True)) for name in ("group_id", "split"))
    assert (after["notes"].map(owner) != table["group_id"]).all()
    assert after["notes"].map(had).tolist() == table["split"].map(str).tolist()
    assert after["split"].equals(table["split"])


def test_texts_of_nothing_are_missing_and_counted(dataset):
    def change(table):
        table.loc[0, "notes"] = "  "
        table.loc[[1, 2], "notes"] = "Healthy."
        table.loc[3, "notes"] = ""

    data = FusionData(dataset(change), {"notes": Letters()}, 0, text={"content": "label_free"})
    said = "4 of 32 texts of 'notes' are missing (2 of them have nothing left by data.text.content=label_free)"
    assert data.notes == [said]
    assert data.data.present[:, 0].tolist() == [False] * 4 + [True] * 28
    assert not any("healthy" in text or "ill," in text for text in data.table["notes"])


def test_what_is_read_is_what_identity_gate_and_tokens_see(dataset):
    def change(table):
        table.loc[0, "notes"] = "FINDINGS: round IMPRESSION: ill"

    source = dataset(change)
    made = {c: FusionData(source, {"notes": Letters()}, 0, text={"content": c}) for c in ("full", "findings")}
    assert made["full"].fingerprint == FusionData(source, {"notes": Letters()}, 0).fingerprint
    assert made["full"].fingerprint != made["findings"].fingerprint
    assert made["findings"].data.cells["notes"][0] == [1, *map(ord, "round"), 2]
    other = [FusionData(source, {}, 0, modalities=["labs"], text={"content": c}) for c in ("full", "label_free")]
    assert other[0].fingerprint == other[1].fingerprint


def test_long_texts_are_told_of_once_and_tokenised_in_one_call(dataset):
    def change(table):
        table.loc[5, "notes"] = "word " * 2999 + "end"

    tokenizer = Letters()
    data = FusionData(dataset(change), {"notes": tokenizer}, 0, text_length=60)
    assert data.notes == ["1 of 32 texts of 'notes' have more than 60 tokens and are cut (longest: 15,000): "
                          "set data.text_length"]  # fmt: skip
    assert max(map(len, data.data.cells["notes"])) == 60
    assert tokenizer.calls == 2
    tokenizer = Letters()
    assert not FusionData(dataset(), {"notes": tokenizer}, 0).notes
    assert tokenizer.calls == 1


def test_a_text_of_just_the_length_is_not_cut():
    reader = TextReader(tokenizers={"notes": Letters()}, length=6)
    assert reader.tokens("notes", ["four", "five5"])[1] == [
        "1 of 2 texts of 'notes' have more than 6 tokens and are cut (longest: 7): set data.text_length"
    ]
    assert reader.tokens("notes", ["four", "", "two"])[1] == []


def test_long_texts_are_counted_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(texts, "_AT_ONCE", 3)
    asked = []

    class Asked(Letters):
        def __call__(self, given, max_length):
            asked.append((len(given), max_length))
            return super().__call__(given, max_length)

    ids, notes = TextReader(tokenizers={"notes": Asked()}, length=5).tokens("notes", ["text " * k for k in range(8)])
    assert asked == [(8, 5), *((count, texts.UNCUT) for count in (3, 3, 1))]
    assert [len(own) for own in ids] == [2] + [5] * 7
    assert notes == ["7 of 8 texts of 'notes' have more than 5 tokens and are cut (longest: 37): set data.text_length"]


def test_a_check_reads_the_same_texts(dataset):
    def change(table):
        table.loc[0, "notes"] = "Ill."

    reader = TextReader("label_free", {"notes": Letters()}, 30)
    report = check(dataset(change), ["notes", "labs"], texts=reader)
    messages = [finding.message for finding in report.findings]
    assert any("1 of 32 texts of 'notes' are missing (1 of them have nothing left" in text for text in messages)
    assert any("31 of 32 texts of 'notes' have more than 30 tokens" in text for text in messages)
    assert report.presence.loc["notes"].sum() == 31


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"content": "label_fre"}, "'data.text.content' must be .*, not 'label_fre'; did you mean 'label_free'"),
        ({"contents": "full"}, "unknown key 'data.text.contents'; did you mean 'content'"),
        ("findings", "'data.text' must hold keys and values, as in {content: full|findings|"),
    ],
)
def test_a_mistake_in_the_option_is_told_before_anything_is_read(node, said):
    with pytest.raises(UserError, match=said.replace("|", r"\|")):
        config.check_node("data", "data", {"name": "lidc", "text": node})


def test_every_content_of_the_option_can_be_read(dataset):
    contents = ("full", "findings", "label_free", "shuffled", "shuffled_words")
    for content in contents:
        assert config.check_node("data", "data", {"name": "lidc", "text": {"content": content}})
    assert len({tuple(read(dataset(), content)[0]["notes"]) for content in contents}) == 4  # no text has headings


def test_a_content_that_changes_no_text_is_noted(dataset):
    def neutral(table):
        table["notes"] = "Seen by the  READER."

    _, notes = read(dataset(neutral), "label_free")
    assert notes == ["data.text.content=label_free changes no text of 'notes'"]
    assert read(dataset(neutral), "full")[1] == []
    assert not any("changes no text" in note for note in read(dataset(), "label_free")[1])
