"""A text alone beside every fusion that reads it: trained once, in table, metrics and report, shared."""

import contextlib
import json
import signal
from unittest import mock

import pandas as pd
import pytest
from layouts import CSV_MODALITIES, make_csv
from program import TABLE, THIRD_PARTY, bert, command, new_store, runs, store, write_config

from fusionbench import config, stage_one
from fusionbench.data.validate import lone_classes
from fusionbench.metrics import HEADLINE
from fusionbench.report import run_report
from fusionbench.task import FusionTask
from fusionbench.types import ModalitySpec

pytestmark = THIRD_PARTY
EI = ["fusion={name: early_intervention, hidden: 8}", "init.stage1=unimodal"]
TEXT, LABS = ModalitySpec("text"), ModalitySpec("table")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A csv with notes and a table, and a config that concatenates them in one epoch."""
    folder = tmp_path_factory.mktemp("texts")
    path = make_csv(folder, patients=16)
    modalities = {name: CSV_MODALITIES[name] for name in ("notes", "labs")}
    tree = {
        "data": {"name": "csv", "path": str(path), "modalities": modalities},
        "encoder": {"notes": bert(folder / "tokenizer"), "labs": TABLE},
        "fusion": {"name": "concat"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "trainer": {"max_epochs": 1, "progress": False},
    }
    return write_config(folder / "fit.yaml", tree)


def fit(experiment, place, *options):
    """Fit without figures, which take most of the time."""
    with mock.patch.object(run_report, "draw", return_value=[]):
        done = command("fit", "--config", experiment, f"tracking.folder={place}", *options)
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def fitted(experiment, tmp_path_factory):
    place = new_store(tmp_path_factory.mktemp("store") / "runs")
    return place, fit(experiment, place)


def fusions(place):
    return [run.data.tags["fusionbench.fusion"] for run in runs(store(place))]


def report(place, run, name):
    client = store(place).client
    with open(client.download_artifacts(run.info.run_id, f"report/{name}"), encoding="utf-8") as file:
        return file.read()


def test_a_fit_on_a_text_and_more_shows_the_text_alone_beside_the_fusion(fitted):
    place, done = fitted
    assert "text only, notes: training it alone" in done.err
    assert fusions(place) == ["unimodal", "concat"]
    assert done.out.index("concat") < done.out.index("notes alone")
    alone, fusion = runs(store(place))
    assert alone.data.tags["fusionbench.modalities"] == "notes"
    for name in HEADLINE:
        assert fusion.data.metrics[f"test/text_only/{name}"] == alone.data.metrics[f"test/{name}"]
    assert not any("text_only" in name for name in alone.data.metrics)


def test_the_report_of_the_run_holds_the_text_alone(fitted):
    place, _ = fitted
    alone, fusion = runs(store(place))
    scores = json.loads(report(place, fusion, "metrics.json"))["scores"]
    assert scores["text_only/mAP"] == pytest.approx(alone.data.metrics["test/mAP"])
    table = report(place, fusion, "text_only.md").splitlines()
    assert [line.split("|")[1].strip() for line in table[:4]] == ["method", "---", "concat", "notes alone"]
    assert fusion.info.run_id[:8] in table[2]
    assert table[2].split("|")[-3].strip() not in ("", "-")
    assert alone.info.run_id[:8] in table[3]
    assert table[-1] == "Content of the texts (data.text.content): full."
    assert fusion.data.tags["fusionbench.text"] == "full"
    assert f"{fusion.data.metrics['test/mAP']:.2f}" in table[2]


def test_test_shows_the_text_alone_as_fit_did(fitted):
    place, _ = fitted
    run = runs(store(place))[-1]
    done = command("test", run.info.run_id, "--folder", place)
    line = next(line for line in done.out.splitlines() if "notes alone" in line)
    assert f"{run.data.metrics['test/text_only/mAP']:.2f}" in line
    other = command("test", run.info.run_id, "--folder", place, "data.text.content=shuffled")
    assert "notes alone" not in other.out
    assert "shuffled text" in " ".join(other.out.split())
    assert "scored on other data" in other.err


def test_the_content_of_texts_is_told_wherever_a_result_is_read(experiment, tmp_path):
    place = new_store(tmp_path / "runs")
    done = fit(experiment, place, "data.text.content=shuffled_words")
    assert {run.data.tags["fusionbench.text"] for run in runs(store(place))} == {"shuffled_words"}
    assert [run.info.run_name for run in runs(store(place))] == [
        "notes-mor-csv-shuffled_words-s0",
        "concat-mor-csv-shuffled_words-s0",
    ]
    lines = [line for line in done.out.splitlines() if "concat" in line or "shuffled_words" in line]
    assert "concat, " in lines[0]
    assert sum("shuffled_words" in line for line in lines) == 3, "a line each, and the run's name"
    assert "(data.text.content): shuffled_words." in report(place, runs(store(place))[-1], "text_only.md")
    assert "text only, notes: note: the encoder of 'notes' starts from random weights" in done.err
    assert "concat: note: the encoder of 'notes' starts from random weights" in done.err


def test_a_content_that_no_modality_has_is_noted(experiment, tmp_path):
    tree = config.read(experiment)
    tree["data"]["modalities"] = {"labs": CSV_MODALITIES["labs"]}
    tree["encoder"] = {"labs": TABLE}
    path = write_config(tmp_path / "labs.yaml", tree)
    place = new_store(tmp_path / "runs")
    said = "data.text.content=label_free changes nothing, since labs are read, and no text"
    done = fit(path, place, "data.text.content=label_free", "fusion={name: unimodal, modality: labs}")
    assert f"note: {said}" in done.err
    assert runs(store(place))[0].data.tags["fusionbench.text"] == "none"
    checked = command("check", "--config", path, "data.text.content=label_free")
    assert said in checked.out


def test_another_fusion_and_a_resumed_one_use_the_same_run(experiment, fitted):
    place, _ = fitted
    first = runs(store(place))[0].info.run_id
    done = fit(experiment, place, "fusion.name=mean")
    assert f"text only, notes: reusing run {first}" in done.err
    assert "notes alone" in done.out
    assert fusions(place) == ["unimodal", "concat", "mean"]
    fit(experiment, place, "fusion.name=mean", "--resume")
    assert fusions(place) == ["unimodal", "concat", "mean"]
    done = fit(experiment, place, *EI)
    assert f"stage 1, notes: reusing run {first}" in done.err
    assert "text only" not in done.err
    assert fusions(place) == ["unimodal", "concat", "mean", "unimodal", "early_intervention"]
    assert "test/text_only/mAP" in runs(store(place))[-1].data.metrics


@pytest.mark.parametrize("step", [3, 7], ids=["in the text alone", "in the fusion"])
def test_a_run_that_was_cut_off_goes_on_with_both(experiment, tmp_path, monkeypatch, step):
    place, real, calls = new_store(tmp_path / "runs"), FusionTask.training_step, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    options = [f"tracking.folder={place}", "data.batch_size=4"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(FusionTask, "training_step", stopped)
        patch.setattr(run_report, "draw", lambda *_: [])
        command("fit", "--config", experiment, *options)
    signal.signal(signal.SIGINT, before)
    assert "KILLED" in {run.info.status for run in runs(store(place))}
    done = fit(experiment, place, "data.batch_size=4", "--resume")
    assert fusions(place) == ["unimodal", "concat"]
    assert {run.info.status for run in runs(store(place))} == {"FINISHED"}
    alone, fusion = runs(store(place))
    assert fusion.data.metrics["test/text_only/mAP"] == alone.data.metrics["test/mAP"]
    assert "notes alone" in done.out


def test_no_text_is_trained_beside_a_modality_alone(experiment, tmp_path):
    place = new_store(tmp_path / "runs")
    done = fit(experiment, place, "fusion={name: unimodal, modality: labs}")
    assert "text only" not in done.err
    assert fusions(place) == ["unimodal"]


@pytest.mark.parametrize(
    ("fusion", "specs", "empty", "texts"),
    [
        ("concat", {"notes": TEXT, "labs": LABS}, None, ["notes"]),
        ("concat", {"notes": TEXT, "letter": TEXT}, None, ["notes", "letter"]),
        ("concat", {"notes": TEXT}, None, []),
        ("concat", {"labs": LABS, "age": LABS}, None, []),
        ("unimodal", {"notes": TEXT, "labs": LABS}, None, []),
        ("concat", {"notes": TEXT, "labs": LABS}, "test", []),
    ],
)
def test_which_texts_are_trained_alone(fusion, specs, empty, texts):
    present = pd.DataFrame(5, index=list(specs), columns=["test", "train", "val"])
    if empty is not None:
        present.loc["notes", empty] = 0
    assert stage_one.text_only(fusion, specs, present) == texts
    assert stage_one.text_only(fusion, specs, present.drop(columns="val")) == []


def test_the_text_alone_is_the_same_config_on_the_text(experiment):
    made = config.load(experiment, ["fusion.name=mean", "seed=3"])
    own = stage_one.stage_one_config(made, "notes")
    assert (own.fusion, own.seed, list(own.data["modalities"])) == ({"name": "unimodal"}, 3, ["notes"])


@pytest.fixture
def told_by_the_text(experiment, tmp_path):
    """The same config where only the ill have notes."""
    tree = config.read(experiment)
    cases = pd.read_csv(tree["data"]["path"], dtype=str, keep_default_na=False)
    cases["notes"] = cases["notes"].where(cases["label"] == "ill", "")
    cases.to_csv(tmp_path / "cases.csv", index=False)
    tree["data"]["path"] = str(tmp_path / "cases.csv")
    return write_config(tmp_path / "fit.yaml", tree)


def test_a_text_of_one_class_is_not_trained_alone_and_this_is_noted(told_by_the_text, tmp_path):
    said = "the text 'notes' is not trained alone: its training cases are all 'ill'"
    place = new_store(tmp_path / "runs")
    done = fit(told_by_the_text, place)
    assert done.err.count(f"note: {said}") == 1
    assert fusions(place) == ["concat"]
    assert not any("text_only" in name for name in runs(store(place))[0].data.metrics)
    checked = command("check", "--config", told_by_the_text)
    assert f"note: {said}" in checked.out
    assert "alone, too" not in checked.out
    rows = {"mean": {"fusion": {"name": "mean"}}, "concat": {}}
    table = {"title": "Rows", "base": "fit.yaml", "seeds": [0], "baselines": [], "rows": rows}
    few = write_config(tmp_path / "few.yaml", table)
    planned = command("ablate", "--config", few, "--dry-run", f"tracking.folder={place}")
    assert "text only" not in planned.out
    assert "1 run to do" in planned.out


@pytest.mark.parametrize(
    ("columns", "lone"),
    [
        ({"label": [0, 1, 1, 0]}, {"letter": "'ill'"}),
        ({"label": [0, 0, 1, 0]}, {}),
        ({"healthy": [1, 1, 1, 1], "ill": [0, 1, 1, 0]}, {"letter": "the same in every class"}),
        ({"healthy": [1, 1, 0, 1], "ill": [0, 1, 1, 0]}, {}),
    ],
)
def test_which_modalities_have_one_class_in_training(columns, lone):
    cases = pd.DataFrame({"split": ["train", "train", "train", "test"], **columns})
    present = pd.DataFrame({"photo": True, "letter": [False, True, True, True]}, index=cases.index)
    dataset = mock.Mock(classes=("healthy", "ill"), multilabel="ill" in columns)
    assert lone_classes(dataset, cases, present) == lone


def test_check_says_so(experiment):
    done = command("check", "--config", experiment, "data.text_length=5", "data.text={content: label_free}")
    assert "a run of this config trains 'notes' alone, too" in " ".join(done.out.split())
    assert "the content of 'notes' that is read is label_free" in done.out
    assert "32 of 32 texts of 'notes' have more than 5 tokens and are cut" in done.out
    done = command("check", "--config", experiment, "fusion={name: unimodal, modality: labs}")
    assert "alone, too" not in done.out
    done = command("check", "--config", experiment, "encoder.notes.tokenizer=/nowhere")
    assert "how many tokens the texts of 'notes' have is not known" in done.out
    assert "no errors" in done.out
