"""The command line: what each command prints, and how each mistake is told, before anything trains."""

import csv
import json
import shutil
import socket
import subprocess
import sys

import pandas as pd
import pytest
from layouts import CSV_MODALITIES, make_csv, make_derm7pt
from program import THIRD_PARTY, VIT, as_overrides, bert, command, new_store, refused, runs, store, write_config

pytestmark = THIRD_PARTY
TABLE = {"name": "table", "width": 16, "depth": 1, "heads": 2}
CNN = "{name: timm_cnn, model: resnet18, weights: random}"
EI = ["fusion.name=early_intervention", "fusion.prior=none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A csv with photographs, notes and a table, and ``fit.yaml``, which fits them in one epoch."""
    folder = tmp_path_factory.mktemp("csv")
    path = make_csv(folder, patients=16)
    modalities = {name: CSV_MODALITIES[name] for name in ("photo", "notes", "labs")}
    data = {"name": "csv", "path": str(path), "modalities": modalities, "size": 32, "cache": str(folder / "cache")}
    tree = {
        "data": data,
        "encoder": {"photo": VIT, "notes": bert(folder / "tokenizer"), "labs": TABLE},
        "fusion": {"name": "concat"},
        "trainer": {"max_epochs": 1, "progress": False},
    }
    write_config(folder / "fit.yaml", tree)
    return folder


@pytest.fixture(scope="module")
def fitted(folder):
    """A finished run of it."""
    runs_folder = new_store(folder / "runs")
    done = command("fit", "--config", folder / "fit.yaml", f"tracking.folder={runs_folder}", "tracking.run_name=first")
    assert done.code == 0, done.err
    return runs_folder


@pytest.fixture
def fit(folder, tmp_path):
    """Fit the csv with overrides that must be refused; return the sentence."""

    def run(*overrides):
        message = refused("fit", "--config", folder / "fit.yaml", f"tracking.folder={tmp_path / 'none'}", *overrides)
        assert not (tmp_path / "none").exists(), "a run was started"
        return message

    return run


def edited(folder, name, change):
    """Write the csv again beside itself with every row changed, without those for which ``change`` returns None."""
    with (folder / "cases.csv").open(encoding="utf-8") as file:
        rows = [change(dict(row)) for row in csv.DictReader(file)]
    frame = pd.DataFrame([row for row in rows if row is not None])
    frame.to_csv(folder / name, index=False)
    return f"data.path={folder / name}"


MISTAKES = {
    "top-level key": (["sed=3"], ["unknown key 'sed'", "'seed'"]),
    "strategy": (["fusion.name=concatt"], ["unknown fusion", "'concat'"]),
    "option": (["data.batchsize=4"], ["'data.batchsize'", "'batch_size'"]),
    "type": (["trainer.max_epochs=ten"], ["'trainer.max_epochs' must be int", "'ten'"]),
    "transform": (["data.transforms.flip=1"], ["'data.transforms.flip'", "'flip_p'"]),
    "override": (["seed"], ["'seed' is no override", "key=value"]),
    "metric": (["trainer.monitor=mAPP"], ["unknown metric 'mAPP'", "'mAP'"]),
    "encoder of no modality": ([f"encoder.photos={CNN}"], ["encoder for 'photos'", "'photo'"]),
    "modality without encoder": (["data.modalities.more={kind: text, column: notes}"], ["'more' has no encoder"]),
    "encoder of another kind": ([f"encoder.notes={CNN}"], ["modality 'notes' is text", "hf_text"]),
    "CNN in EI": ([*EI, f"encoder.photo={CNN}"], ["'timm_cnn' of modality 'photo' cannot take", "timm_vit"]),
    "prior without stage 1": (["fusion.name=early_intervention"], ["init.stage1=unimodal", "fusion.prior"]),
    "unknown prior": (["fusion.name=early_intervention", "fusion.prior=photoo"], ["fusion.prior 'photoo'", "'photo'"]),
    "acquire layer": ([*EI, "fusion.acquire_layer=99"], ["fusion.acquire_layer must lie in 1 to", "not 99"]),
    "insert layer": ([*EI, "fusion.insert_layer=99"], ["fusion.insert_layer must lie in 0 to", "not 99"]),
    "gaps": ([*EI[:1], "fusion.prior=per_sample", "fusion.gaps=[1]"], ["fusion.gaps has 1 values for 3 modalities"]),
    "missing modality": (["fusion.name=unimodal", "fusion.modality=photo"], ["needs every modality of every case"]),
    "weights not there": (["encoder.photo.weights=/nowhere/vit.pth"], ["/nowhere/vit.pth"]),
    "weights not said": (
        ["encoder.photo={name: timm_cnn, model: resnet18}"],
        ["encoder 'timm_cnn' needs 'encoder.photo.weights'"],
    ),
    "unknown asset": (["encoder.photo.weights=asset:dinov2"], ["dinov2", "did you mean 'dinov2_small'"]),
    "unknown timm model": (["encoder.photo.model=test_vitt"], ["no model 'test_vitt'", "'test_vit"]),
    "ranks": (["adapt.name=mor", "adapt.sites=[fc3]"], ["no linear layers 'fc3'", "'fc2'"]),
    "stage 1 of no modality": (["init.runs={photos: abc}"], ["init.runs names 'photos'", "'photo'"]),
    "file": (["data.path=/nowhere/cases.csv"], ["no file '/nowhere/cases.csv'", "data.root"]),
    "column": (["data.modalities.photo.column=foto"], ["no column 'foto'", "'photo'"]),
    "key of a modality": (["data.modalities.photo.colum=photo"], ["no key 'colum'", "'column'"]),
    "kind": (["data.modalities.photo.kind=picture"], ["unknown kind 'picture'", "image"]),
    "rotation": (["data.transforms.rotate=500.0"], ["rotate=500.0 is out of range"]),
    "text longer than positions": (["encoder.notes.config.max_position_embeddings=4"], ["'notes' has 1", "takes 4"]),
    "no room for a text": (["data.text_length=0"], ["'data.text_length' must be at least 3, not 0"]),
    "no cases in a batch": (["data.batch_size=0"], ["'data.batch_size' must be at least 1, not 0"]),
    "no epoch": (["trainer.max_epochs=0"], ["'trainer.max_epochs' must be at least 1, not 0"]),
    "negative seed": (["seed=-1"], ["'seed' must be at least 0, not -1"]),
}


@pytest.mark.parametrize(("overrides", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_the_config_is_one_sentence_before_training(fit, overrides, said):
    message = fit(*overrides)
    for part in said:
        assert part in message


def test_a_modality_that_the_dataset_lacks(tmp_path):
    data = {"name": "derm7pt", "root": str(make_derm7pt(tmp_path, lesions=1)), "modalities": ["clinical", "dermoscopi"]}
    path = write_config(tmp_path / "fit.yaml", {"data": data, "encoder": VIT, "fusion": {"name": "concat"}})
    message = refused("fit", "--config", path, f"tracking.folder={tmp_path / 'none'}")
    assert "no modality 'dermoscopi'; did you mean 'dermoscopic'?" in message
    both = ["data.modalities=[clinical, dermoscopic]", "fusion.name=unimodal", f"tracking.folder={tmp_path / 'none'}"]
    assert "'fusion.modality', one of clinical, dermoscopic" in refused("fit", "--config", path, *both)
    assert "names a modality twice" in refused("fit", "--config", path, "data.modalities=[clinical, clinical]")
    assert not (tmp_path / "none").exists()


def test_files_of_configs_that_cannot_be_read(tmp_path):
    write_config(tmp_path / "demo.yaml", {"seed": 1})
    write_config(tmp_path / "loop.yaml", {"extends": "loop.yaml"})
    write_config(tmp_path / "reference.yaml", {"seed": "${sed}", "data": {"name": "csv"}})
    (tmp_path / "broken.yaml").write_text("data: {name: csv\nseed: ]")
    for name, said in {
        "dmo.yaml": "did you mean 'demo.yaml'",
        "broken.yaml": "no valid yaml",
        "loop.yaml": "extends itself",
        "reference.yaml": "cannot be resolved",
        "demo.yaml": "must say 'data: {name: ...}'",
    }.items():
        assert said in refused("fit", "--config", tmp_path / name)
        assert said in refused("check", "--config", tmp_path / name) or name == "demo.yaml"


BAD_DATA = {
    "empty split": (lambda row: None if row["split"] == "val" else row, "split 'val' is empty"),
    "unknown split": (lambda row: row | {"split": row["split"].replace("val", "vall")}, "did you mean 'val'"),
    "label out of range": (
        lambda row: row | {"label": "9" if row["case_id"] == "c003" else "1"},
        "'c003' is out of range",
    ),
    "class absent from train": (
        lambda row: row | {"label": "healthy" if row["split"] == "train" else row["label"]},
        "no training case is of class 'ill'",
    ),
    "no label": (lambda row: row | {"label": "" if row["case_id"] == "c003" else row["label"]}, "'c003' has no label"),
    "patient in two splits": (lambda row: row | {"group_id": "p00"}, "in more than one split"),
    "case twice": (lambda row: row | {"case_id": "c000"}, "'c000' is in"),
    "no picture at all": (lambda row: row | {"photo": ""}, "no training case has the modality 'photo'"),
    "word for a number": (
        lambda row: row | {"age": "old" if row["split"] == "test" and row["case_id"] > "c01" else row["age"]},
        "'old'",
    ),
}


@pytest.mark.parametrize(("change", "said"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_a_fault_in_the_data_is_one_sentence_before_training(folder, fit, request, change, said):
    name = request.node.callspec.id.replace(" ", "_") + ".csv"
    extra = ["data.classes=[healthy, ill]"] if "label" in name else []
    assert said in fit(edited(folder, name, change), *extra)


@pytest.fixture
def damaged(folder, tmp_path):
    """The csv with one training picture that is cut off."""
    shutil.copytree(folder / "images", tmp_path / "images")
    shutil.copy(folder / "cases.csv", tmp_path / "cases.csv")
    picture = tmp_path / "images" / "1.png"
    picture.write_bytes(picture.read_bytes()[:200])
    return f"data.path={tmp_path / 'cases.csv'}"


def test_a_damaged_picture_stops_before_training_with_its_name(fit, damaged, tmp_path):
    message = fit(damaged)
    assert f"'{tmp_path}/images/1.png'" in message
    assert "data.on_unreadable=missing" in message


def test_a_damaged_picture_counts_as_missing_if_the_config_says_so(folder, damaged, tmp_path):
    place = new_store(tmp_path / "runs")
    arguments = [damaged, "data.on_unreadable=missing", f"tracking.folder={place}"]
    done = command("fit", "--config", folder / "fit.yaml", *arguments)
    assert done.code == 0, done.err
    assert "of 'photo' are missing or unreadable" in done.err
    assert runs(store(place))[-1].info.status == "FINISHED"


def test_overrides_may_stand_anywhere(folder, tmp_path):
    for arguments in (
        ("sed=1", "fit", "--config", folder / "fit.yaml"),
        ("fit", "sed=1", "--config", folder / "fit.yaml", "--resume"),
        ("fit", "--config", folder / "fit.yaml", "sed=1", "--resume", "seed=2"),
    ):
        assert "unknown key 'sed'" in refused(*arguments)
    assert "takes no overrides such as 'seed=1'" in refused("list", "fusion", "seed=1")


def test_mistakes_of_the_command_line_itself():
    assert "'fti' (choose from 'fit'" in refused("fti")
    assert "--config" in refused("fit")
    assert "'fusionbench list --help'" in refused("list", "fusions")
    assert "unrecognized arguments: --resum" in refused("show", "fusion", "mean", "--resum")
    assert "did you mean 'concat'" in refused("show", "fusion", "conct")


def test_a_run_can_be_named_by_id_name_or_folder(fitted):
    run = runs(store(fitted))[0]
    model = store(fitted).client.download_artifacts(run.info.run_id, "model")
    names = (run.info.run_id, run.info.run_id[:8], "first", model)
    shown = [command("test", name, "--folder", fitted) for name in names]
    assert [done.code for done in shown] == [0, 0, 0, 0], shown
    scores = [[word for word in done.out.split() if word.startswith("0.")] for done in shown]
    assert scores[0]
    assert scores[0] == scores[1] == scores[2] == scores[3]


def test_runs_that_are_not_there(fitted, tmp_path):
    for name in ("test", "predict"):
        assert "there is no run 'frist'" in refused(name, "frist", "--folder", fitted)
        assert "did you mean 'first'" in refused(name, "frist", "--folder", fitted)
        assert "no model.json" in refused(name, tmp_path)
        assert "there is no model 'x.ckpt'" in refused(name, "x.ckpt", "--folder", tmp_path)
    assert "there are none" in refused("test", "first", "--folder", fitted, "--experiment", "other")


def test_predict_refuses_before_it_works(fitted, tmp_path):
    assert "must end in .csv or .parquet" in refused("predict", "nothing", "--out", tmp_path / "p.txt")
    assert "no file" in refused("predict", "first", "--folder", fitted, "--csv", tmp_path / "new.csv")
    assert "choose from 'train'" in refused("predict", "first", "--split", "tset")
    header = tmp_path / "lacks.csv"
    header.write_text("case_id,group_id,notes\na,a,fine\n")
    assert "no column 'photo'" in refused("predict", "first", "--folder", fitted, "--csv", header)
    assert not list(tmp_path.glob("p*"))


def test_new_cases_are_predicted_from_a_csv_without_labels(folder, fitted, tmp_path):
    table = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
    expected = tmp_path / "own.csv"
    assert command("predict", "first", "--folder", fitted, "--split", "test", "--out", expected).code == 0
    fresh = table.loc[table["split"] == "test", ["case_id", "group_id", "photo", "notes", "age", "sex"]]
    fresh.to_csv(folder / "new.csv", index=False)
    out = tmp_path / "new.parquet"
    done = command("predict", "first", "--folder", fitted, "--csv", folder / "new.csv", "--out", out)
    assert done.code == 0, done.err
    columns = ["case", "group", "prob.healthy", "prob.ill", "present.photo"]
    pd.testing.assert_frame_equal(pd.read_parquet(out)[columns], pd.read_csv(expected)[columns], atol=1e-6)
    assert set(pd.read_parquet(out)["target"]) == {-1}


def test_other_data_than_the_model_knows_are_refused(folder, fitted):
    other = refused("predict", "first", "--folder", fitted, "data.classes=[healthy, ill, dead]")
    assert "the model knows the classes healthy, ill" in other
    message = refused("test", "first", "--folder", fitted, "seed=1")  # another random base
    assert "frozen base" in message


def test_check_ends_with_1_for_real_errors_only(folder, tmp_path):
    sound = command("check", "--config", folder / "fit.yaml")
    assert (sound.code, sound.err) == (0, "")
    assert "no errors" in sound.out
    leak = edited(folder, "leak.csv", lambda row: row | {"group_id": "p"})
    faulty = command("check", "--config", folder / "fit.yaml", leak)
    assert faulty.code == 1
    assert "1 error" in faulty.out
    assert "in more than one split" in faulty.out
    root = make_derm7pt(tmp_path, lesions=1)
    assert command("check", "data.name=derm7pt", f"data.root={root}").code == 0
    assert "did you mean 'derm7pt'" in refused("check", "data.name=derm7")
    assert "--config FILE" in refused("check")


@pytest.mark.parametrize("kind", ["fusion", "encoder", "encoders", "adapt", "data", "optimizer", "scheduler"])
def test_list_has_one_line_for_each_component(kind):
    from fusionbench import registry

    done = command("list", kind)
    names = registry.names(kind.removesuffix("s"))
    assert [line.split()[0] for line in done.out.splitlines()] == names
    assert all(len(line.split()) > 3 for line in done.out.splitlines())


def test_show_prints_the_docstring_and_every_option_with_type_and_default():
    done = command("show", "fusion", "early_intervention")
    assert done.code == 0
    assert "arXiv 2603.17514" in done.out
    assert [line.split() for line in done.out.splitlines() if line.startswith("lambda_aux ")] == [
        ["lambda_aux", "float", "0.3"]
    ]
    assert "Literal['mean', 'max']" in done.out
    assert "required" in command("show", "encoder", "timm_vit").out
    assert "no options" in command("show", "adapt", "full").out
    assert "batch_size" in command("show", "data", "mrnet").out


def test_ui_refuses_a_port_that_is_taken_and_a_folder_without_runs(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr("os.execv", lambda *arguments: pytest.fail("the server was started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in refused("ui", "--folder", fitted, "--port", port)
    assert "no runs" in refused("ui", "--folder", tmp_path)
    assert not (tmp_path / "mlflow.db").exists()


def test_ui_serves_this_machine_alone(fitted, monkeypatch):
    started = []
    monkeypatch.setattr("os.execv", lambda program, arguments: started.append(arguments) or sys.exit(0))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert command("ui", "--folder", fitted, "--port", port).code == 0
    (arguments,) = started
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert arguments[arguments.index("--backend-store-uri") + 1] == f"sqlite:///{fitted}/mlflow.db"


LIGHT = """
import json, sys
from fusionbench.__main__ import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit:
        pass
heavy = {"torch", "torchvision", "torchmetrics", "lightning", "mlflow", "timm", "transformers", "albumentations", "pandas"}
print("HEAVY", sorted(heavy & set(sys.modules)))
"""


def test_help_list_show_and_mistakes_import_nothing_heavy(folder):
    commands = [["--help"], *([name, "--help"] for name in ("fit", "test", "predict", "check", "list", "show", "ui"))]
    commands += [["list", "fusion"], ["show", "fusion", "early_intervention"], ["fit", "--config", "nowhere.yaml"]]
    commands += [["fit", "--config", str(folder / "fit.yaml"), "fusion.name=concatt"]]
    program = [sys.executable, "-c", LIGHT, json.dumps(commands)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert done.stdout.count("usage: fusionbench") == 8
    assert done.stderr.count("error: ") == 2


def test_a_traceback_is_shown_to_those_who_ask(folder):
    from fusionbench.errors import UserError

    with pytest.raises(UserError, match="unknown key 'sed'"):
        command("--traceback", "fit", "--config", folder / "fit.yaml", "sed=1")


def test_overrides_of_the_tests_survive_yaml():
    assert as_overrides({"a": {"b": [1, "x"], "c": None}, "d": 1.5}) == ["a.b=[1, x]", "a.c=null", "d=1.5"]
