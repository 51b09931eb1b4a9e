"""Every experiment yaml, through the real command line, on data in its dataset's own layout, with tiny encoders."""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from layouts import make_derm7pt, make_fundus, make_mmc_amd, make_mrnet, make_openi
from program import EXPERIMENTS, THIRD_PARTY, command, new_store, refused, runs, store, tiny_encoders
from safetensors import safe_open

from fusionbench import config

pytestmark = THIRD_PARTY
MAKERS = {
    "mmc_amd": make_mmc_amd,
    "derm7pt": make_derm7pt,
    "mrnet": make_mrnet,
    "openi": make_openi,
    "fundus": make_fundus,
}
FIVES = "FIVES A Fundus Image Dataset for AI-based Vessel Segmentation"
FOLDERS = {"mmc_amd": "mmc-amd", "derm7pt": "derm7pt", "mrnet": "MRNet-v1.0", "openi": "openi", "fundus": FIVES}
SMALLER = {"mrnet": ["data.holdout=10"], "lidc": ["data.max_cases=60"]}


def dataset_of(experiment):
    return config.read(EXPERIMENTS / f"{experiment}.yaml")["data"]["name"]


def parameter(experiment):
    """LIDC has no layout to be made: its experiments read the pinned asset."""
    return pytest.param(experiment, marks=[pytest.mark.assets] if dataset_of(experiment) == "lidc" else [])


NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
WITH_FOLDER = [name for name in NAMES if dataset_of(name) != "lidc"]


@dataclass(frozen=True)
class Fitted:
    """An experiment that was run."""

    config: dict
    folder: Path
    done: object
    store: object

    @property
    def run(self):
        return runs(self.store)[-1]

    @property
    def model(self):
        return [self.run.info.run_id, "--folder", self.config["tracking"]["folder"]]

    @property
    def alone(self):
        """The modalities that are trained alone too: all in stage 1, else the texts, which fundus has of one class."""
        from fusionbench.data.base import make_dataset

        kinds = {name: spec.kind for name, spec in make_dataset(self.config["data"]).modalities.items()}
        staged = self.config["init"]["stage1"] == "unimodal"
        texts = [name for name, kind in kinds.items() if kind == "text" and self.config["data"]["name"] != "fundus"]
        return [name for name in self.config["data"]["modalities"] if staged or name in texts]

    @property
    def cases(self):
        """The dataset's own case table."""
        from fusionbench.data.base import make_dataset

        return make_dataset(self.config["data"]).cases()

    def artifact(self, name):
        return Path(self.store.client.download_artifacts(self.run.info.run_id, name))


def options(experiment, folder):
    """Return the overrides that make an experiment small, its data made in ``folder``."""
    name = dataset_of(experiment)
    root = [f"data.root={MAKERS[name](folder)}"] if name in MAKERS else []
    short = ["trainer.max_epochs=1", "init.overrides.trainer.max_epochs=1", "trainer.progress=false"]
    short += ["trainer.strategy=auto", "trainer.devices=1"]  # tests/distributed has the rest
    data = ["data.size=32", "data.num_workers=0", f"data.cache={folder / 'cache'}", *SMALLER.get(name, [])]
    encoders = tiny_encoders(EXPERIMENTS / f"{experiment}.yaml", folder)
    return [*root, *short, *data, *encoders, f"tracking.folder={new_store(folder / 'runs')}"]


@pytest.fixture(scope="module", params=[parameter(name) for name in NAMES])
def fitted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    overrides = options(request.param, folder)
    path = EXPERIMENTS / f"{request.param}.yaml"
    resolved = config.load(path, overrides).to_dict()
    done = command("fit", "--config", path, *overrides)
    return Fitted(resolved, folder, done, store(folder / "runs", resolved["tracking"]["experiment"]))


def test_an_experiment_fits_and_prints_its_table_and_where_the_run_is(fitted):
    assert fitted.done.code == 0, fitted.done.err
    assert fitted.run.info.run_id in fitted.done.out
    assert fitted.config["fusion"]["name"] in fitted.done.out
    for modality in fitted.alone:
        assert f"{modality} alone" in fitted.done.out


def test_stage_one_and_the_main_run_are_tracked_to_their_end(fitted):
    tracked = runs(fitted.store)
    assert {run.info.status for run in tracked} == {"FINISHED"}
    modalities = fitted.config["data"]["modalities"]
    assert [run.data.tags["fusionbench.modalities"] for run in tracked] == [*fitted.alone, ", ".join(modalities)]
    assert [run.data.tags["fusionbench.fusion"] for run in tracked[:-1]] == ["unimodal"] * len(fitted.alone)
    for run in tracked:
        assert 0 <= run.data.metrics["test/mAP"] <= 1
        assert run.data.metrics["val/loss"] > 0
        trainable, total = (run.data.metrics[f"parameters/{part}"] for part in ("trainable", "total"))
        assert 0 < trainable <= total
        assert (trainable == total) == (fitted.config["adapt"]["name"] == "full")
        assert len(run.data.tags["fusionbench.fingerprint"]) == 24


def test_artifacts_are_whole(fitted):
    assert yaml.safe_load(fitted.artifact("config.yaml").read_text()) == fitted.config
    folder = fitted.artifact("model")
    assert {path.name for path in folder.iterdir()} - {"adapters"} == {"model.json", "model.safetensors"}
    views = {path.stem for path in (folder / "adapters").glob("*.safetensors")}
    roles = ("primary_", "auxiliary_") if fitted.config["fusion"]["name"] == "early_intervention" else ("",)
    with safe_open(folder / "model.safetensors", "pt") as model:
        whole = {name.split(".")[2] for name in model.keys() if ".backbones.own_" in name}  # noqa: SIM118
    read = ("text",) if fitted.config["fusion"]["name"] == "mllm" else fitted.config["data"]["modalities"]
    assert {f"own_{view}" for view in views} | whole == {f"own_{role}{m}" for role in roles for m in read}
    assert not {f"own_{view}" for view in views} & whole
    exported = {path.parent.name for path in (folder / "adapters").glob("*/adapter_config.json")}
    assert bool(exported & views) == (fitted.config["adapt"]["name"] == "peft_lora")
    report = fitted.artifact("report")
    figures = list(report.glob("*.png"))
    assert len(figures) >= 4
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert (report / "metrics.json").is_file()


def test_predictions_hold_every_test_case_and_no_real_id(fitted):
    table = pd.read_parquet(fitted.artifact("predictions.parquet"))
    test = fitted.cases[fitted.cases["split"] == "test"]
    assert len(table) == table["case"].nunique() == len(test)
    assert table["group"].nunique() == test["group_id"].nunique()
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in [*table["case"], *table["group"]])
    shown = {str(value) for column in table.select_dtypes(exclude="number") for value in table[column]}
    assert not shown & {*fitted.cases["case_id"], *fitted.cases["group_id"]}


def test_scoring_the_run_again_gives_the_same_numbers(fitted):
    done = command("test", *fitted.model, COLUMNS="220")
    assert done.code == 0, done.err
    scores = [fitted.run.data.metrics[f"test/{name}"] for name in ("mAP", "mAUC", "mS2", "accuracy", "F1", "ECE")]
    shown = re.findall(r"(?<![\d.\[])\d\.\d\d(?=\s)", done.out)[
        : len(scores)
    ]  # without their intervals, if they have one
    assert [float(value) for value in shown] == [round(score, 2) for score in scores]


def test_prediction_gives_every_case_its_probabilities(fitted):
    out = fitted.folder / "p.csv"
    done = command("predict", *fitted.model, "--out", out)
    assert done.code == 0, done.err
    table, cases = pd.read_csv(out, dtype={"case": str, "group": str}), fitted.cases
    assert table["case"].tolist() == sorted(cases["case_id"])
    assert table["split"].tolist() == cases.sort_values("case_id")["split"].tolist()
    probabilities = table.filter(regex=r"^prob\.")
    assert ((probabilities >= 0) & (probabilities <= 1)).all(axis=None)
    if "target" in table:
        assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-6)
    tracked = pd.read_parquet(fitted.artifact("predictions.parquet")).set_index("case")
    again = table[table["split"] == "test"].assign(case=lambda t: t["case"].map(fitted.store.anonymous))
    again = again.set_index("case").loc[tracked.index]
    close = 1e-6 if fitted.config["trainer"]["precision"] == "32-true" else 1e-3  # cases stand in other batches
    pd.testing.assert_frame_equal(again.filter(regex=r"^prob\."), tracked.filter(regex=r"^prob\."), atol=close)


@pytest.mark.parametrize("experiment", WITH_FOLDER)
def test_without_its_data_one_sentence_says_where_they_belong(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = EXPERIMENTS / f"{experiment}.yaml"
    folder = FOLDERS[dataset_of(experiment)]
    for environment in ({}, {"FUSIONBENCH_DATA": str(tmp_path / "elsewhere")}):
        message = refused("fit", "--config", path, **environment)
        assert f"{environment.get('FUSIONBENCH_DATA', 'data')}/{folder}'" in message
        assert "must hold" in message
        assert "https://" in message
        assert "data.root=" in message
        assert "FUSIONBENCH_DATA" in message
    assert f"'{tmp_path}/nowhere" in refused("fit", "--config", path, f"data.root={tmp_path}/nowhere")
    assert not (tmp_path / "runs").exists()
