"""A language model that answers in words through the whole program: what is kept, monitored, refused and saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
from layouts import CSV_MODALITIES, make_csv
from program import THIRD_PARTY, VIT_PARTS, command, llama, new_store, refused, runs, store, write_config
from safetensors.torch import load_file

from fusionbench import run, stage_one
from fusionbench.report import run_report
from fusionbench.tracking import TrackedRun

pytestmark = THIRD_PARTY
WRITING = ["fusion.decode=generate", "fusion.max_new_tokens=3"]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a csv with photographs and notes and the config of ``mllm`` on it, and return the config."""
    folder = tmp_path_factory.mktemp("answers")
    modalities = {name: CSV_MODALITIES[name] for name in ("photo", "notes")}
    data = {"name": "csv", "path": str(make_csv(folder, patients=16)), "modalities": modalities, "size": 32}
    decoder = {k: v for k, v in llama(folder / "tokenizer").items() if k != "patch"}
    tree = {
        "data": {**data, "cache": str(folder / "cache")},
        "encoder": {"notes": {**decoder, "name": "llama_vision", "vision": VIT_PARTS}},
        "adapt": {"name": "full"},
        "fusion": {"name": "mllm"},
        "trainer": {"max_epochs": 1, "progress": False},
    }
    return write_config(folder / "fit.yaml", tree)


@pytest.fixture(scope="module")
def fitted(experiment: Path) -> Path:
    """Fit it, its model writing and judged by what it writes, and return the folder of its runs."""
    place, unread = new_store(experiment.parent / "runs"), mock.Mock(side_effect=AssertionError)
    with mock.patch.object(run_report, "draw", return_value=[]), mock.patch.object(run, "unimodal_state", unread):
        options = [*WRITING, "trainer.monitor=answer_accuracy", f"tracking.folder={place}"]
        done = command("fit", "--config", experiment, *options)
    assert done.code == 0, done.err
    return place


def tracked(place: Path) -> list[TrackedRun]:
    """Return the text alone and the run itself."""
    made = store(place)
    return [made.open(found.info.run_id) for found in runs(made)]


def test_the_model_of_a_text_alone_is_not_read_where_nothing_starts_from_it(fitted: Path) -> None:
    assert [found.tags()["fusionbench.fusion"] for found in tracked(fitted)] == ["unimodal", "mllm"]


def test_what_was_written_is_in_the_predictions_that_are_tracked(fitted: Path) -> None:
    table = pd.read_parquet(tracked(fitted)[1].artifact("predictions.parquet"))
    assert set(table["answer"]) <= {-1, 0, 1}
    assert all(len(text.split()) <= 3 for text in table["answer_text"])
    assert any(table["answer_text"])
    assert "val/answer_accuracy" in tracked(fitted)[1].metrics()


def test_prediction_tells_people_the_classes_by_name_and_the_words(fitted: Path, tmp_path: Path) -> None:
    found, out = tracked(fitted)[1], tmp_path / "out.csv"
    assert command("predict", found.run_id, "--folder", fitted, "--out", out, "--split", "test").code == 0
    table, kept = pd.read_csv(out).fillna(""), pd.read_parquet(found.artifact("predictions.parquet"))
    assert sorted(table["answer_text"]) == sorted(kept["answer_text"])
    assert sorted(table["answer"]) == sorted(kept["answer_named"])
    assert "answer_named" not in table.columns


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["task.label_smoothing=0.1"], "task.label_smoothing is 0.1, but fusion 'mllm' answers in words, whose loss"),
        (["fusion.prompt='{text} {class}:'"], "holds {class}, for which nothing is put; did you mean 'classes'?"),
        (["trainer.monitor=answer_accuracy"], "fusion 'mllm' as it is set writes no answers; set fusion.decode=genera"),
        (
            ["trainer.monitor=answer_acuracy", *WRITING],
            "unknown metric 'answer_acuracy'; did you mean 'answer_accuracy'",
        ),
        (
            ["trainer.monitor=answer_none", "fusion={name: concat}"],
            "fusion 'concat' as it is set writes no answers; cho",
        ),
    ],
)
def test_what_has_no_part_in_answers_is_refused_before_any_training(
    options: list[str], sentence: str, experiment: Path, tmp_path: Path
) -> None:
    assert sentence in refused("fit", "--config", experiment, f"tracking.folder={tmp_path / 'runs'}", *options)
    assert not list(tmp_path.glob("runs/work/*/checkpoints"))


def test_the_weights_of_a_trained_base_are_on_disk_once(fitted: Path) -> None:
    for found in tracked(fitted):
        files = [path for path in fitted.rglob("*.safetensors") if found.run_id in path.parts]
        assert {path.name for path in files} == {"model.safetensors"}
        assert len({path.stat().st_ino for path in files}) == 1
        assert not list(fitted.rglob("*.tmp"))


def test_a_model_is_found_in_the_store_without_a_copy_where_the_working_folder_is_gone(
    fitted: Path, tmp_path: Path
) -> None:
    place = tmp_path / "runs"
    shutil.copytree(fitted, place)
    shutil.rmtree(place / "work")
    found = store(place).open(tracked(fitted)[1].run_id)
    assert found.artifact("model").is_relative_to(fitted / "artifacts"), "where the store says"
    assert not (place / "work").exists()


def test_stage_1_starts_from_the_model_itself_or_from_the_adapters_of_older_runs(fitted: Path) -> None:
    alone = tracked(fitted)[0]
    state = stage_one.unimodal_state(alone, "notes")
    model = load_file(alone.artifact("model") / "model.safetensors")
    assert {f"views.backbones.own_notes.{name}" for name in state.adapter} == {
        n for n in model if n.startswith("views")
    }
    assert set(state.head) == {"weight", "bias"}
    read, there = mock.Mock(return_value={"of": "older"}), mock.patch.object(Path, "exists", return_value=True)
    with mock.patch.object(stage_one.models, "read_tensors", read), there:
        assert stage_one.unimodal_state(alone, "notes").adapter == {"of": "older"}
    assert read.call_args.args[0].parts[-2:] == ("adapters", "notes.safetensors")
