"""MDF on a group's own photographs, with masks in a csv: fit, predict, and what is refused before anything trains."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from layouts import SPLITS, picture, save, vessels, write_rows
from program import THIRD_PARTY, UNET, VIT_PARTS, command, edited, llama, new_store, refused, runs, store, write_config

from fusionbench import build, config, preflight
from fusionbench.data.transforms import NORMALIZE
from fusionbench.encoders.llama_vision import LlamaVision

pytestmark = THIRD_PARTY
CLASSES = ("benign", "malignant")
SIZE = 32


def make_cases(folder: Path) -> Path:
    """Write ``cases.csv``: 24 patients with a photograph and a note, of whom two in three have a drawing."""
    rows: list[list[object]] = [["case_id", "group_id", "split", "label", "photo", "notes", "drawn"]]
    for case in range(24):
        label, name = case % 2, f"{case}.png"
        save(folder / "photos" / name, picture(label, case))
        save(folder / "masks" / name, vessels(case))
        drawn = f"masks/{name}" if case % 3 else ""
        split = SPLITS[(0, 0, 1, 2)[case // 2 % 4]]
        note = f"the eye looks {'healthy' if case % 5 else 'ill'}"
        rows.append([f"c{case:02d}", f"p{case:02d}", split, CLASSES[label], f"photos/{name}", note, drawn])
    return write_rows(folder / "cases.csv", rows)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write csv and config, and return their folder."""
    folder = tmp_path_factory.mktemp("own")
    photo = {"kind": "image", "column": "photo", "masks": {"vessels": "drawn"}}
    modalities = {"photo": photo, "notes": {"kind": "text", "column": "notes"}}
    data = {"name": "csv", "path": str(make_cases(folder)), "modalities": modalities, "masks": ["vessels"]}
    data |= {"size": SIZE, "cache": str(folder / "cache"), "allow": ["near_duplicates"]}
    language = {k: v for k, v in llama(folder / "tokenizer").items() if k != "patch"}
    language |= {"name": "llama_vision", "vision": VIT_PARTS}
    tree = {
        "data": data,
        "encoder": {"photo": {**UNET, "segment": True}, "notes": language},
        "adapt": {"name": "full"},
        "fusion": {"name": "mdf", "mask": "vessels", "grid": 2},
        "trainer": {"max_epochs": 1, "progress": False, "monitor": "dice"},
    }
    write_config(folder / "fit.yaml", tree)
    return folder


@pytest.fixture(scope="module")
def fitted(experiment: Path) -> Path:
    """Fit it and return its folder."""
    place = new_store(experiment / "runs")
    done = command("fit", "--config", experiment / "fit.yaml", f"tracking.folder={place}")
    assert done.code == 0, done.err
    return experiment


def test_masks_of_a_csv_are_learned_and_scored(fitted: Path) -> None:
    *alone, own = runs(store(fitted / "runs"))
    assert [run.data.tags["fusionbench.fusion"] for run in alone] == ["unimodal"]
    assert own.data.tags["fusionbench.fusion"] == "mdf"
    assert own.data.metrics["train/loss/segmentation"] > 0
    assert 0 <= own.data.metrics["val/dice"] <= 1


def predict(folder: Path, path: Path) -> pd.DataFrame:
    """Return what the fitted run predicts of a csv."""
    run, out = runs(store(folder / "runs"))[-1].info.run_id, path.with_suffix(".predicted.csv")
    done = command("predict", run, "--folder", folder / "runs", "--csv", path, "--out", out)
    assert done.code == 0, done.err
    return pd.read_csv(out)


def test_a_csv_is_predicted_with_and_without_masks(fitted: Path) -> None:
    with (fitted / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in ("label", "split")} for row in csv.DictReader(file)]
    write_rows(fitted / "with.csv", [list(rows[0]), *(row.values() for row in rows)])
    bare = [{k: v for k, v in row.items() if k != "drawn"} for row in rows]
    write_rows(fitted / "without.csv", [list(bare[0]), *(row.values() for row in bare)])
    drawn, plain = predict(fitted, fitted / "with.csv"), predict(fitted, fitted / "without.csv")
    assert drawn["score.dice"].notna().tolist() == [bool(row["drawn"]) for row in rows]
    assert plain["score.dice"].isna().all()
    names = [f"prob.{name}" for name in CLASSES]
    np.testing.assert_allclose(drawn[names], plain[names], atol=1e-6)


def without_drawings(folder: Path, *splits: str) -> str:
    """Write the csv again without the drawings of these splits."""
    name = f"no_{'_'.join(splits)}.csv"
    return edited(folder, name, lambda row: {**row, "drawn": "" if row["split"] in splits else row["drawn"]})


@pytest.mark.parametrize(
    ("overrides", "empty", "sentence"),
    [
        (["fusion.mask=vesels"], (), "'fusion.mask' is 'vesels', but data.masks has none of that name; did you mean"),
        (["data.masks=null"], (), "'fusion.mask' is 'vessels', but data.masks names none: set data.masks=[vessels]"),
        (
            ["data.masks=null", "data.modalities.photo.masks.vessels=drwn"],
            (),
            "no column 'drwn'; did you mean 'drawn'",
        ),
        ([], ("train",), "no training case has the mask 'vessels', which fusion.mask is to learn"),
        ([], ("val",), "trainer.monitor is dice, but no validation case has the mask 'vessels': set trainer.monitor="),
        (
            ["trainer.stop=per_part", "trainer.monitor=mAP"],
            ("val",),
            "trainer.stop is per_part and judges 'unet' by dice, but no validation case has the mask 'vessels': set "
            "trainer.stop=whole",
        ),
        (
            ["trainer.stop=per_part", "trainer.monitor=mAP", "fusion.mask=null", "encoder.photo.segment=false"],
            (),
            "trainer.stop is per_part and judges 'unet' by dice, but fusion.mask is null",
        ),
        (
            ["fusion.mask=null", "encoder.photo.segment=false"],
            (),
            "trainer.monitor is dice, but fusion.mask is null",
        ),
        (["encoder.notes.normalize=imagenet"], (), "'normalize' is imagenet, but data.transforms.normalize is clip"),
    ],
)
def test_what_the_data_do_not_have_is_refused_before_any_training(
    experiment: Path, tmp_path: Path, overrides: list[str], empty: tuple[str, ...], sentence: str
) -> None:
    path = [without_drawings(experiment, *empty)] if empty else []
    said = refused(
        "fit", "--config", experiment / "fit.yaml", *path, *overrides, f"tracking.folder={tmp_path / 'runs'}"
    )
    assert sentence in said
    assert not (tmp_path / "runs").exists()


def test_a_monitored_score_that_is_never_there_ends_the_run_after_its_first_epoch(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_check_scores", lambda *_: None)
    place = new_store(tmp_path / "runs")
    path, short = without_drawings(experiment, "val"), ["trainer.max_epochs=3", f"tracking.folder={place}"]
    done = command("fit", "--config", experiment / "fit.yaml", path, *short)
    assert done.code == 2
    assert "error: trainer.monitor is dice, which is no number on the validation cases" in done.err
    *_, run = runs(store(place))
    assert run.info.status == "FAILED"
    assert "test/mAP" not in run.data.metrics


def test_a_monitored_metric_that_the_labels_leave_undefined_is_refused_before_any_training(
    experiment: Path, tmp_path: Path
) -> None:
    path = edited(
        experiment, "val_of_one.csv", lambda row: {**row, "label": CLASSES[0]} if row["split"] == "val" else row
    )
    said = refused(
        *("fit", "--config", experiment / "fit.yaml", path, "trainer.monitor=mAUC", f"tracking.folder={tmp_path / 'r'}")
    )
    assert "trainer.monitor is mAUC, which the validation cases' labels leave undefined" in said
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("given", ["imagenet", [[0.5, 0.4, 0.3], [0.2, 0.3, 0.25]], None])
def test_the_vision_tower_sees_pictures_as_it_was_trained_whatever_the_data_normalise_by(
    experiment: Path, given: str | list[list[float]] | None
) -> None:
    stated = [] if given is None else [f"data.transforms.normalize={given}"]
    checked = config.load(experiment / "fit.yaml", stated)
    made = build.strategy(checked, build.data(checked).problem)
    encoder = made.views.encoder("notes")
    assert isinstance(encoder, LlamaVision)
    mean, deviation = (torch.tensor(row).view(3, 1, 1) for row in normalization(given or "clip"))
    wanted, spread = (torch.tensor(encoder.vision.net.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    plain = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(encoder.pixels((plain - mean) / deviation), (plain - wanted) / spread)


def normalization(given: str | list[list[float]]) -> list[list[float]]:
    """Return means and standard deviations."""
    return [list(row) for row in NORMALIZE[given]] if isinstance(given, str) else given
