"""``fusionbench prepare openi``: through the command line, cut off and continued, and what it refuses."""

import csv
import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from layouts import OPENI, openi_case, write_rows
from openi_raw import make_openi_raw, openi_xml, png, tgz
from PIL import Image
from program import command, refused

from fusionbench.data.base import make_dataset
from fusionbench.data.module import FusionData
from fusionbench.data.prepare import openi, openi_splits


@pytest.fixture
def raw(tmp_path):
    return make_openi_raw(tmp_path / "raw") | {"out": tmp_path / "out"}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Write small pictures, which is quick."""
    monkeypatch.setattr(openi, "SIZE", 32)


def arguments(raw):
    return ["prepare", "openi", *(word for name, path in raw.items() for word in (f"--{name}", path))]


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_layout_is_built_from_the_raw_collection(raw):
    done = command(*arguments(raw))
    assert (done.code, done.err) == (0, "")
    assert "17 in train instead of 3199, 17 in val instead of 101, 17 in test instead of 377" in done.out
    assert "9 pictures have no report or an empty one, first CXR103_IM-0003-1001" in done.out
    assert f"fusionbench check data.name=openi data.root={raw['out']}" in done.out
    assert [line.split()[1::2] for line in done.out.splitlines() if "train │" in line] == [["train", "17", "14", "14"]]
    assert sorted(path.name for path in raw["out"].iterdir()) == ["images", "test.csv", "train.csv", "validation.csv"]
    assert len(list((raw["out"] / "images").iterdir())) == 51  # no lateral picture
    for part, name in enumerate(("train", "validation", "test")):
        header, *table = rows(raw["out"] / f"{name}.csv")
        assert header == ["id", "report", *OPENI]
        expected = {}
        for study in range(14):
            names, findings, impression, labels = openi_case(part, study)
            text = f"FINDINGS : {findings} IMPRESSION : {impression}"
            expected |= {f"{picture}.png": [text, *map(str, labels)] for picture in names}
        assert {row[0]: row[1:] for row in table} == expected


def test_what_was_prepared_trains(raw, tmp_path):
    assert command(*arguments(raw)).code == 0
    checked = command("check", "data.name=openi", f"data.root={raw['out']}", f"data.cache={tmp_path / 'cache'}")
    assert (checked.code, checked.out.splitlines()[-1]) == (0, "no errors")
    dataset = make_dataset({"name": "openi", "root": str(raw["out"])})
    assert (dataset.cases()["report"] == "").sum() == 9
    data = FusionData(dataset, {}, 0, modalities=["xray"], cache=str(tmp_path / "cache"))
    data.setup("fit")
    assert data.problem.complete
    assert next(iter(data.train_dataloader())).inputs["xray"].shape == (8, 1, 3, 256, 256)


def test_csv_splits_give_the_same_tables(raw, tmp_path):
    assert command(*arguments(raw)).code == 0
    again = raw | {"splits": raw["out"], "out": tmp_path / "again"}
    assert command(*arguments(again)).code == 0
    for name in ("train.csv", "validation.csv", "test.csv"):
        assert (again["out"] / name).read_bytes() == (raw["out"] / name).read_bytes()


def test_a_second_run_writes_no_picture_again_nor_opens_their_archive(raw):
    assert command(*arguments(raw)).code == 0
    before = {path: path.stat().st_mtime_ns for path in (raw["out"] / "images").iterdir()}
    raw["images"].unlink()
    assert command(*arguments(raw)).code == 0
    assert {path: path.stat().st_mtime_ns for path in (raw["out"] / "images").iterdir()} == before


def test_an_archive_that_is_cut_off_and_then_complete(raw):
    whole = raw["images"].read_bytes()
    raw["images"].write_bytes(whole[: len(whole) // 2])
    assert "NLMCXR_png.tgz' is damaged or cut off" in refused(*arguments(raw))
    assert not list(raw["out"].glob("*.csv"))
    first = {path: path.stat().st_ino for path in (raw["out"] / "images").iterdir()}
    assert 10 < len(first) < 40
    raw["images"].write_bytes(whole)
    assert command(*arguments(raw)).code == 0
    assert {path: path.stat().st_ino for path in first} == first
    assert len(list((raw["out"] / "images").glob("*.png"))) == 51


def test_no_new_table_stands_beside_an_old_one(raw, monkeypatch):
    assert command(*arguments(raw)).code == 0

    def stop(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(openi, "write_bytes", stop)
    done = command(*arguments(raw))
    assert (done.code, done.err) == (130, "interrupted; the same command again goes on where it was stopped\n")
    assert not list(raw["out"].glob("*.csv"))


KILLED = """
import os, signal, sys
from fusionbench import files
from fusionbench.__main__ import main
replace, moved = os.replace, []
def killing(source, target):
    if len(moved) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    moved.append(replace(source, target))
files.os.replace = killing
os.cpu_count = lambda: 1
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("moment", [20, 52], ids=["among the pictures", "between two tables"])
def test_killed_it_leaves_no_half_and_goes_on(raw, moment):
    """The kill comes when a file is written and not yet in its place."""
    words = [str(moment), *map(str, arguments(raw))]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    there = sorted((raw["out"] / "images").glob("*.png"))
    assert len(there) == min(moment, 51)
    for path in there:
        with Image.open(path) as image:
            image.load()
            assert image.size == (512, 512)
    assert not (raw["out"] / "test.csv").exists()
    assert command(*arguments(raw)).code == 0
    assert len(rows(raw["out"] / "test.csv")) == 18
    assert not list((raw["out"] / "images").glob("*.tmp"))


class Evil:
    """Pickles to a call of ``open`` that makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in an array"])
def test_a_malicious_npy_runs_nothing(raw, tmp_path, inside):
    evil = Evil(tmp_path / "ran")
    content = {"id_GT": np.array([evil], object) if inside else evil, "label_GT": []}
    np.save(raw["splits"] / "validation.npy", content, allow_pickle=True)
    message = refused(*arguments(raw))
    assert "validation.npy' as plain data" in message
    assert "'io.open', which is no plain data, and was not run" in message
    assert not (tmp_path / "ran").exists()
    assert not raw["out"].exists()


def splits_with(raw, change):
    content = np.load(raw["splits"] / "train.npy", allow_pickle=True).item()
    np.save(raw["splits"] / "train.npy", change(content), allow_pickle=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c | {"label_GT": c["label_GT"][:, :13]},
            "is 17 x 13, but 17 pictures with the findings Atelectasis",
        ),
        (lambda c: c | {"label_GT": c["label_GT"] + 1}, "labels of 'CXR100_IM-0000-1001.png' in"),
        (lambda c: c | {"label_GT": [["a"]]}, "must be a matrix of 0 and 1"),
        (lambda c: {"ids": c["id_GT"]}, "must hold a dict of 'id_GT'"),
        (lambda c: c | {"id_GT": c["id_GT"][[0, *range(16)]]}, "name 'CXR100_IM-0000-1001' more than once"),
        (lambda c: c | {"id_GT": ["../CXR1_a.png", *c["id_GT"][1:]]}, "'../CXR1_a' is not named as Open-I's"),
        (
            lambda c: c | {"id_GT": ["CXR7_x.png", "CXR8_x.png", *c["id_GT"][2:]]},
            "the splits name 2 of 51 pictures that",
        ),
    ],
)
def test_splits_that_do_not_fit_are_told(raw, change, message):
    splits_with(raw, change)
    assert message in refused(*arguments(raw))
    assert not list(raw["out"].glob("*.csv"))


def test_pictures_without_their_report_are_kept_and_noted(raw):
    names, *_ = openi_case(0, 0)
    tgz(raw["reports"], {"ecgen-radiology/1.xml": openi_xml(names, "Clear.", "")})
    done = command(*arguments(raw))
    assert done.code == 0, done.err
    assert "49 pictures have no report or an empty one" in done.out
    assert [row[1] for row in rows(raw["out"] / "train.csv")[1:3]] == ["FINDINGS : Clear. IMPRESSION : "] * 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images", None, "there is no archive"),
        ("reports", None, "there is no archive"),
        ("reports", b"", "is damaged or cut off"),
        ("reports", b"no archive" * 100, "is damaged or cut off"),
        ("reports", gzip.compress(b"no tar" * 100), "is damaged or cut off"),
    ],
)
def test_archives_that_are_none(raw, name, content, message):
    raw[name].unlink()
    if content is not None:
        raw[name].write_bytes(content)
    assert message in refused(*arguments(raw))


@pytest.mark.parametrize("length", [0, 20, 400])
def test_a_damaged_picture_is_named(raw, length):
    names, *_ = openi_case(0, 0)
    noise = np.random.default_rng(0).integers(0, 256, (30, 30), dtype=np.uint8)
    tgz(raw["images"], {f"{names[0]}.png": png(noise)[:length]})
    assert f"cannot read the picture '{names[0]}'" in refused(*arguments(raw))


def test_missing_split_files_are_named(raw):
    (raw["splits"] / "validation.npy").rename(raw["splits"] / "val.npy")
    assert len(openi_splits.read_splits(raw["splits"])) == 51
    (raw["splits"] / "val.npy").unlink()
    assert "has no file validation.npy or val.npy or validation.csv or val.csv" in refused(*arguments(raw))
    assert "there is no folder" in refused(*arguments(raw | {"splits": raw["splits"] / "nowhere"}))
    write_rows(raw["splits"] / "val.csv", [["id", *OPENI[:-1], "Support Devices"]])
    assert "no column 'Support-Devices'; did you mean 'Support Devices'" in refused(*arguments(raw))


def test_xml_that_ends_early_names_its_report(raw):
    tgz(raw["reports"], {"ecgen-radiology/1.xml": b"<eCitation>"})
    assert "report '1.xml' in " in refused(*arguments(raw))
    tgz(raw["reports"], {"readme.txt": b""})
    assert "holds no report" in refused(*arguments(raw))


def test_help_says_where_the_files_are_and_imports_nothing_heavy():
    program = "import sys\nfrom fusionbench.__main__ import main\ntry:\n main(['prepare', '--help'])\n"
    program += "except SystemExit:\n print(sorted({'torch', 'pandas', 'numpy', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for word in ("https://openi.nlm.nih.gov/imgs/collections/", "NLMCXR_png.tgz", "TransChex_openi.zip", "CC BY-NC-ND"):
        assert word in done.stdout
    assert "choose from 'openi'" in refused("prepare", "opni")
    assert "--images" in refused("prepare", "openi")


def test_counts_of_the_official_split_need_no_note(raw, monkeypatch):
    table = openi.prepare(*(Path(raw[name]) for name in ("images", "reports", "splits", "out")))
    monkeypatch.setattr(openi, "OFFICIAL", {"train": 17, "val": 17, "test": 17})
    assert [note.split()[0] for note in openi.notes(table)] == ["9"]


def test_out_must_be_a_folder(raw, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    message = refused(*arguments(raw | {"out": file}))
    assert f"--out '{file}' must be a folder" in message
    assert "Errno" not in message
    assert f"'{file}' is a file" in refused(*arguments(raw | {"out": file / "deeper"}))
    assert file.read_text() == ""


def test_the_table_says_what_has_a_report(raw):
    header = next(line for line in command(*arguments(raw)).out.splitlines() if "studies" in line)
    assert [word.strip() for word in header.strip("┃ ").split("┃")] == [
        "split",
        "pictures",
        "pictures with a report",
        "studies",
    ]
