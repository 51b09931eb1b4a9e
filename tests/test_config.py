"""What a config means: how files and overrides compose, and how each mistake in one is told."""

import dataclasses

import pytest
import yaml
from program import EXPERIMENTS, write_config

from fusionbench import config
from fusionbench.errors import UserError

BASE = {
    "data": {"name": "csv", "path": "cases.csv", "modalities": {"photo": {"kind": "image", "column": "photo"}}},
    "encoder": {"name": "timm_vit", "model": "test_vit", "weights": "random"},
    "fusion": {"name": "concat"},
}


@pytest.fixture
def base(tmp_path):
    return write_config(tmp_path / "base.yaml", BASE)


def changed(tmp_path, **changes):
    """Write a config that extends the base."""
    return write_config(tmp_path / "own.yaml", {"extends": "base.yaml", **changes})


def test_defaults_fill_what_a_config_leaves_out(base):
    loaded = config.load(base)
    assert (loaded.adapt, loaded.optimizer, loaded.scheduler) == ({"name": "mor"}, {"name": "sgd"}, {"name": "cyclic"})
    assert (loaded.trainer, loaded.task, loaded.seed) == (config.TrainerOptions(), config.TaskOptions(), 0)
    assert loaded.encoder == {"*": BASE["encoder"]}


def test_a_file_wins_over_what_it_extends_and_a_later_parent_over_an_earlier(base, tmp_path):
    write_config(tmp_path / "first.yaml", {"seed": 1, "trainer": {"max_epochs": 1, "patience": 1, "accumulate": 1}})
    write_config(tmp_path / "second.yaml", {"trainer": {"patience": 2, "accumulate": 2}})
    own = {"extends": ["base.yaml", "first.yaml", "second.yaml"], "trainer": {"accumulate": 3}}
    loaded = config.load(write_config(tmp_path / "own.yaml", own), ["trainer.gradient_clip=4"])
    trainer = loaded.trainer
    assert (loaded.seed, trainer.max_epochs, trainer.patience, trainer.accumulate) == (1, 1, 2, 3)
    assert trainer.gradient_clip == 4.0


def test_extends_is_relative_to_the_file_that_says_it(base, tmp_path):
    write_config(tmp_path / "deep" / "middle.yaml", {"extends": "../base.yaml", "seed": 5})
    loaded = config.load(write_config(tmp_path / "other" / "own.yaml", {"extends": "../deep/middle.yaml"}))
    assert loaded.seed == 5
    assert loaded.fusion == {"name": "concat"}


@pytest.mark.parametrize("how", ["file", "override"])
def test_another_name_drops_the_options_of_the_component_before(base, tmp_path, how):
    ei = {"name": "early_intervention", "hidden": 8, "prior": "none"}
    write_config(tmp_path / "ei.yaml", {"extends": "base.yaml", "fusion": ei})
    if how == "file":
        own = write_config(tmp_path / "own.yaml", {"extends": "ei.yaml", "fusion": {"name": "mean"}})
        assert config.load(own).fusion == {"name": "mean"}
    else:
        assert config.load(tmp_path / "ei.yaml", ["fusion.name=mean"]).fusion == {"name": "mean"}


def test_the_same_name_keeps_the_options(base, tmp_path):
    write_config(tmp_path / "sgd.yaml", {"extends": "base.yaml", "optimizer": {"name": "sgd", "lr": 0.5}})
    own = write_config(tmp_path / "own.yaml", {"extends": "sgd.yaml", "optimizer": {"name": "sgd", "momentum": 0.1}})
    assert config.load(own).optimizer == {"name": "sgd", "lr": 0.5, "momentum": 0.1}
    assert config.load(own, ["optimizer.lr=1"]).optimizer["lr"] == 1.0


def test_options_follow_a_new_name_among_the_overrides_in_any_order(base):
    for overrides in (["optimizer.name=adamw", "optimizer.lr=0.25"], ["optimizer.lr=0.25", "optimizer.name=adamw"]):
        assert config.load(base, overrides).optimizer == {"name": "adamw", "lr": 0.25}


def test_one_encoder_for_all_gives_way_to_a_map_by_modality_and_back(base, tmp_path):
    node = {"name": "timm_cnn", "model": "resnet18", "weights": "hub"}
    own = changed(tmp_path, encoder={"photo": node})
    assert config.load(own).encoder == {"photo": node}
    again = write_config(tmp_path / "again.yaml", {"extends": "own.yaml", "encoder": BASE["encoder"]})
    assert config.load(again).encoder == {"*": BASE["encoder"]}


def test_a_modality_more_keeps_the_encoders_of_the_others(base, tmp_path):
    photo, notes = BASE["encoder"], {"name": "hf_text", "weights": "asset:minilm"}
    write_config(tmp_path / "one.yaml", {"extends": "base.yaml", "encoder": {"photo": photo}})
    own = write_config(tmp_path / "two.yaml", {"extends": "one.yaml", "encoder": {"notes": notes}})
    assert config.load(own).encoder == {"photo": photo, "notes": notes}


def test_values_are_read_as_yaml_and_checked_by_their_type(base):
    overrides = ["trainer.progress=false", "trainer.gradient_clip=null", "optimizer.name=sgd", "optimizer.lr=1e-3"]
    overrides.append("data.modalities.photo.size=64")
    loaded = config.load(base, overrides)
    assert loaded.trainer.progress is False
    assert loaded.trainer.gradient_clip is None
    assert loaded.optimizer["lr"] == 0.001
    assert loaded.data["modalities"]["photo"]["size"] == 64


def test_references_are_resolved_after_the_last_merge(base, tmp_path):
    own = changed(tmp_path, seed=3, data={"split_seed": "${seed}"}, tracking={"run_name": "${fusion.name}-${seed}"})
    loaded = config.load(own, ["seed=7", "fusion.name=mean"])
    assert loaded.data["split_seed"] == 7
    assert loaded.tracking.run_name == "mean-7"
    assert "${" not in str(loaded.to_dict())


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_comes_back_from_its_own_values(path):
    loaded = config.load(path)
    values = yaml.safe_load(yaml.safe_dump(loaded.to_dict()))
    assert config.from_dict(values) == loaded
    assert config.from_dict(values).to_dict() == loaded.to_dict()


def test_merging_leaves_both_sides_as_they_were():
    left, right = {"data": {"name": "csv", "size": 1}}, {"data": {"size": 2}}
    assert config.merge(left, right) == {"data": {"name": "csv", "size": 2}}
    assert (left, right) == ({"data": {"name": "csv", "size": 1}}, {"data": {"size": 2}})


def test_a_config_cannot_be_changed(base):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load(base).seed = 1


MISTAKES = {
    "top-level key": ({"optimiser": {"lr": 1}}, "unknown key 'optimiser'", "'optimizer'"),
    "key of a section": ({"trainer": {"max_epoch": 3}}, "'trainer.max_epoch'", "'max_epochs'"),
    "key of init": ({"init": {"stage": "unimodal"}}, "'init.stage'", "'stage1'"),
    "section that is no map": ({"trainer": 3}, "'trainer' must hold keys and values", "3"),
    "content of texts": (
        {"data": {"text": "label_free"}},
        "'data.text' must hold keys and values, as in {content: full|findings|label_free|shuffled|shuffled_words}",
        "'label_free'",
    ),
    "dataset": ({"data": {"name": "csw"}}, "unknown data 'csw'", "'csv'"),
    "encoder": ({"encoder": {"name": "timm_vits", "weights": "hub"}}, "unknown encoder 'timm_vits'", "'timm_vit'"),
    "encoder of a modality": ({"encoder": {"photo": {"name": "hf_txt"}}}, "unknown encoder 'hf_txt'", "'hf_text'"),
    "tuning method": ({"adapt": {"name": "lorra"}}, "unknown adapt 'lorra'", "'lora'"),
    "strategy": ({"fusion": {"name": "early_interventoin"}}, "unknown fusion", "'early_intervention'"),
    "optimizer": ({"optimizer": {"name": "adamww"}}, "unknown optimizer 'adamww'", "'adamw'"),
    "schedule": ({"scheduler": {"name": "cosin"}}, "unknown scheduler 'cosin'", "'cosine'"),
    "option of a dataset": ({"data": {"fraction": [1]}}, "csv' has no option 'data.fraction'", "'fractions'"),
    "option of the data module": ({"data": {"batchsize": 4}}, "no option 'data.batchsize'", "'batch_size'"),
    "option of an encoder": ({"encoder": {"name": "timm_vit", "weight": "hub"}}, "'encoder.weight'", "'weights'"),
    "option of a tuning method": ({"adapt": {"name": "mor", "rank": 2}}, "'adapt.rank'", "'ranks'"),
    "option of a strategy": (
        {"fusion": {"name": "early_intervention", "lamda_aux": 1.0}},
        "'fusion.lamda_aux'",
        "'lambda_aux'",
    ),
    "option of an optimizer": ({"optimizer": {"name": "sgd", "learning": 1.0}}, "no option 'optimizer.learning'", "lr"),
    "option of a schedule": ({"scheduler": {"name": "cyclic", "maxlr": 1.0}}, "'scheduler.maxlr'", "'max_lr'"),
    "transform": ({"data": {"transforms": {"rotat": 3}}}, "no transform 'data.transforms.rotat'", "'rotate'"),
    "type of a transform": ({"data": {"transforms": {"rotate": "far"}}}, "'data.transforms.rotate' must be", "'far'"),
    "type of a number": ({"trainer": {"max_epochs": "ten"}}, "'trainer.max_epochs' must be int", "'ten'"),
    "float for a whole number": ({"data": {"batch_size": 1.5}}, "'data.batch_size' must be int", "1.5"),
    "bool for a whole number": ({"seed": True}, "'seed' must be int", "True"),
    "one of several words": ({"trainer": {"precision": "bf16"}}, "'trainer.precision' must be", "bf16-mixed"),
    "text for a list": ({"data": {"fractions": "all"}}, "'data.fractions' must be Sequence[float]", "'all'"),
    "node without a name": ({"adapt": ["mor"]}, "'adapt' must be {name: ..., options}", "mor"),
    "no weights": ({"encoder": {"name": "timm_vit", "model": "x"}}, "needs 'encoder.weights'", "str"),
    "reference to nothing": ({"seed": "${sed}"}, "cannot be resolved", "sed"),
    "value that must be given": ({"seed": "???"}, "cannot be resolved", "seed"),
}


@pytest.mark.parametrize(("tree", "said", "hint"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_one_sentence_with_what_was_meant(base, tmp_path, tree, said, hint):
    drops = {"extends": "base.yaml"}
    if isinstance(tree.get("encoder"), dict) and "weights" not in tree["encoder"]:
        drops = {**{k: v for k, v in BASE.items() if k != "encoder"}}
    path = write_config(tmp_path / "own.yaml", {**drops, **tree})
    with pytest.raises(UserError) as error:
        config.load(path)
    message = str(error.value)
    assert said in message
    assert hint in message
    assert "\n" not in message


@pytest.mark.parametrize("key", ["data", "encoder", "fusion"])
def test_what_every_config_must_say(tmp_path, key):
    path = write_config(tmp_path / "own.yaml", {name: node for name, node in BASE.items() if name != key})
    with pytest.raises(UserError, match=f"must say '{key}:"):
        config.load(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "'seed' is no override"),
        ("=3", "'=3' is no override"),
        ("seed=[1", "could not be read"),
        ("sed=3", "did you mean 'seed'"),
        ("trainer.max_epochs=many", "must be int, not 'many'"),
        ("fusion=mean", "fusion: {name: ...}"),
    ],
)
def test_mistakes_in_overrides(base, override, said):
    with pytest.raises(UserError) as error:
        config.load(base, [override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(base, tmp_path):
    with pytest.raises(UserError, match=r"did you mean 'base\.yaml'"):
        config.load(tmp_path / "basse.yaml")
    with pytest.raises(UserError, match=r"there is no config file '.*nowhere/base.yaml'"):
        config.load(tmp_path / "nowhere" / "base.yaml")
    (tmp_path / "broken.yaml").write_text("data: {name: csv\nseed: ]")
    with pytest.raises(UserError, match=r"'broken.yaml' is no valid yaml: [^\n]+\Z"):
        config.load(tmp_path / "broken.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(UserError, match=r"'binary\.yaml' is no valid yaml"):
        config.load(tmp_path / "binary.yaml")
    (tmp_path / "list.yaml").write_text("- seed\n- data\n")
    with pytest.raises(UserError, match="must hold keys and values"):
        config.load(tmp_path / "list.yaml")


def test_a_config_that_extends_itself(base, tmp_path):
    write_config(tmp_path / "a.yaml", {"extends": "b.yaml"})
    write_config(tmp_path / "b.yaml", {"extends": "a.yaml"})
    with pytest.raises(UserError, match=r"'a.yaml' extends itself by way of a.yaml -> b.yaml"):
        config.load(tmp_path / "a.yaml")


def test_two_ways_to_one_parent_are_no_cycle(base, tmp_path):
    write_config(tmp_path / "left.yaml", {"extends": "base.yaml", "seed": 1})
    write_config(tmp_path / "right.yaml", {"extends": "base.yaml", "trainer": {"patience": 2}})
    loaded = config.load(write_config(tmp_path / "own.yaml", {"extends": ["left.yaml", "right.yaml"]}))
    assert (loaded.seed, loaded.trainer.patience) == (1, 2)


def test_options_of_a_component_that_is_the_default_need_no_name():
    tree = {"data": {"name": "lidc"}, "encoder": {"name": "table"}, "fusion": {"name": "mean"}}
    made = config.from_dict(tree | {"optimizer": {"lr": 0.5}, "adapt": {"ranks": [2]}})
    assert made.optimizer == {"name": "sgd", "lr": 0.5}
    assert made.adapt == {"name": "mor", "ranks": [2]}
    assert made.scheduler == {"name": "cyclic"}


def test_a_password_is_not_public():
    tree = {"data": {"name": "lidc"}, "encoder": {"name": "table"}, "fusion": {"name": "mean"}}
    made = config.from_dict(tree | {"tracking": {"uri": "https://me:secret@server:5000"}})
    assert made.public()["tracking"]["uri"] == "https://server:5000"
    assert made.to_dict()["tracking"]["uri"] == "https://me:secret@server:5000"
