"""Each mistake in a config or in the data: one sentence, status 2, and nothing was trained."""

import shutil

import pytest
from layouts import make_derm7pt
from program import (
    THIRD_PARTY,
    VIT,
    command,
    edited,
    new_store,
    refused,
    runs,
    store,
    write_config,
    write_csv_experiment,
)

pytestmark = THIRD_PARTY
CNN = "{name: timm_cnn, model: resnet18, weights: random}"
EI = ["fusion.name=early_intervention", "fusion.prior=none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_csv_experiment(tmp_path_factory.mktemp("csv"))


@pytest.fixture
def fit(folder, tmp_path):
    """Fit the csv with overrides that must be refused; return the sentence."""

    def run(*overrides):
        message = refused("fit", "--config", folder / "fit.yaml", f"tracking.folder={tmp_path / 'none'}", *overrides)
        assert not (tmp_path / "none").exists(), "a run was started"
        return message

    return run


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
    "prior without stage 1": (
        ["fusion.name=early_intervention"],
        ["init.stage1=unimodal", "show fusion early_intervention"],
    ),
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
    "type in a modality": (["data.modalities.photo.size=big"], ["'size' of modality 'photo'", "not 'big'"]),
    "no pixel": (["data.size=0"], ["'data.size' must be at least 1, not 0"]),
    "no slice": (["data.modalities.photo.instances=0"], ["'instances' of modality 'photo'", "not 0"]),
    "split seed": (["data.split_seed=-1"], ["'data.split_seed' must lie in 0 to 4294967295, not -1"]),
    "no target": (["data.targets=[]"], ["data.targets is empty"]),
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
    assert "data.modalities is empty" in refused("fit", "--config", path, "data.modalities=[]")
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
    "one class": (lambda row: row | {"label": "ill"}, "all cases are of class 'ill'"),
    "picture in two splits": (lambda row: row | {"photo": "images/1.png"}, "identical in two splits"),
    "folder for a picture": (lambda row: row | {"photo": "images"}, "images are unreadable"),
    "id in a table": (lambda row: row | {"sex": row["case_id"]}, "column 'sex' has 16 different words"),
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
