"""A run's identity: an allow-list, each entry by an example, and what is not on it."""

import pytest
from layouts import CSV_MODALITIES, make_csv
from program import TABLE, VIT, bert
from tiny import BERT
from torch import ones
from transformers import BertConfig, BertModel

from fusionbench import build, config, provenance, stage_one
from fusionbench.fingerprint import fingerprint
from fusionbench.fusion.base import UnimodalState


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    modalities = {name: CSV_MODALITIES[name] for name in ("photo", "notes", "labs")}
    data = {"name": "csv", "path": str(make_csv(folder, patients=8)), "modalities": modalities, "size": 32}
    return {
        "data": data | {"cache": str(folder / "cache")},
        "encoder": {"photo": VIT, "notes": bert(folder / "tokenizer"), "labs": TABLE},
        "fusion": {"name": "concat"},
    }


@pytest.fixture(scope="module")
def identity(tree):
    def compute(*overrides, alone=None):
        made = config.from_dict(config.merge(tree, config.parse_overrides(overrides)))
        own = stage_one.stage_one_config(made, alone) if alone else made
        return fingerprint(own, build.data(own), {})

    return compute


@pytest.fixture(scope="module")
def plain(identity):
    return {alone: identity(alone=alone) for alone in (None, "photo", "notes", "labs")}


@pytest.mark.parametrize(
    "override",
    [
        *("data.num_workers=3", "data.cache=/tmp/elsewhere", "trainer.accelerator=cpu", "trainer.progress=false"),
        *("trainer.devices=2", "trainer.strategy=zero3", "trainer.offload=optimizer", "trainer.checkpointing=true"),
        *("tracking.experiment=other", "tracking.log_every=3", "encoder.photo.checkpointing=true"),
        *("data.text.content=full", "data.text.content=findings"),  # these texts have no headings
        *(
            "data.text_length=256",
            "data.transforms.rotate=180",
            "optimizer.momentum=0.95",
            "data.fractions=[0.5,0.2,0.3]",
        ),
    ],
)
def test_what_no_result_depends_on_or_is_the_default(identity, plain, override):
    assert identity(override) == plain[None]


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "trainer.max_epochs=3", "trainer.patience=0", "trainer.monitor=mAUC", "trainer.gradient_clip=1.0"),
        *("trainer.accumulate=2", "trainer.limit_train_batches=1", "trainer.precision=bf16-mixed", "fusion.name=mean"),
        *("adapt.name=frozen", "optimizer.lr=0.3", "scheduler.gamma=0.5", "task.label_smoothing=0.1", "data.size=48"),
        *("data.batch_size=4", "data.sampling=shuffle", "data.text_length=5", "data.transforms.rotate=0"),
        *("encoder.labs.depth=2", "data.modalities.labs.columns=[age]", "data.text.content=shuffled_words"),
    ],
)
def test_what_a_result_depends_on(identity, plain, override):
    assert identity(override) != plain[None]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_zero_in_half_precision_is_another_run_than_ddp(identity, precision):
    half = f"trainer.precision={precision}"
    assert identity(half, "trainer.strategy=ddp") == identity(half) != identity(half, "trainer.strategy=zero3")
    assert identity(half, "trainer.strategy=zero2") == identity(half, "trainer.strategy=zero3")


@pytest.mark.parametrize(
    ("alone", "override"),
    [
        *(("photo", "data.text_length=5"), ("photo", "encoder.labs.depth=2"), ("photo", "encoder.notes.pool=mean")),
        *(("notes", "data.transforms.rotate=0"), ("notes", "data.size=48"), ("labs", "data.text_length=5")),
        *(("photo", "fusion.name=mean"), ("labs", "data.modalities.photo.instances=2")),
        *(("photo", "data.text.content=shuffled"), ("labs", "data.text.content=label_free")),
    ],
)
def test_a_stage_one_run_depends_on_nothing_of_the_other_modalities(identity, plain, alone, override):
    assert identity(override, alone=alone) == plain[alone]


@pytest.mark.parametrize(
    ("alone", "override"),
    [("notes", "data.text_length=5"), ("photo", "data.transforms.rotate=0"), ("labs", "encoder.labs.depth=2")],
)
def test_a_stage_one_run_depends_on_what_is_its_own(identity, plain, alone, override):
    assert identity(override, alone=alone) != plain[alone]


def test_of_a_weights_folder_what_is_read_counts_wherever_it_lies(identity, tmp_path):
    folder = tmp_path / "bert"
    settings = BertConfig(**{k: v for k, v in BERT.items() if k != "model_type"})
    BertModel(settings).save_pretrained(folder)

    def found():
        return identity(f"encoder.notes.weights={folder}", "encoder.notes.config=null")

    first = found()
    (folder / "README.md").write_text("words")
    assert found() == first
    folder = folder.rename(tmp_path / "moved")
    assert found() == first
    (folder / "config.json").write_text(settings.to_json_string().replace("gelu", "relu"))
    assert found() != first


def test_stage_one_states_count_by_weights_and_by_the_score_that_a_prior_is_taken_from(tree):
    made = config.from_dict(tree)
    source = build.data(made)
    states = [
        UnimodalState({"a": ones(2)}, {"weight": ones(1)}, 0.5),
        UnimodalState({"a": ones(2)}, {"weight": 2 * ones(1)}, 0.5),
        UnimodalState({"a": 2 * ones(2)}, {"weight": ones(1)}, 0.5),
        UnimodalState({"a": ones(2)}, {"weight": ones(1)}, 0.6),
    ]
    found = {fingerprint(made, source, {"photo": state}) for state in states}
    found |= {fingerprint(made, source, {"notes": states[0]}), fingerprint(made, source, {})}
    assert len(found) == 6


def test_code_counts_with_what_it_imports_and_words_do_not(tmp_path, monkeypatch):
    package = tmp_path / "plugin_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(strategy, layer, follow=("plugin_of_test",)):
        (package / "strategy.py").write_text(strategy)
        (package / "layer.py").write_text(layer)
        provenance._code.cache_clear()
        provenance._is_module.cache_clear()
        return provenance.source_digest(["plugin_of_test.strategy"], follow)

    code, layer = '"""Words."""\nfrom plugin_of_test import layer\nx = layer.f(1)\n', "def f(x):\n    return x\n"
    first = digest(code, layer)
    assert digest(code.replace("Words", "Other words") + "# and a comment\n", layer.replace(":\n ", ":\n\n ")) == first
    assert digest(code.replace("f(1)", "f(2)"), layer) != first
    assert digest(code, layer.replace("return x", "return -x")) != first
    assert digest(code, layer.replace("return x", "return -x"), ()) == digest(code, layer, ())
