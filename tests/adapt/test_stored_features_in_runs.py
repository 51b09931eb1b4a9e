"""Runs that read stored features: which views do, and that nothing else of a run changes."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from program import THIRD_PARTY
from stored import PLAIN, SETTING, fit

from fusionbench import build, config
from fusionbench.adapt import feature_store
from fusionbench.adapt.feature_store import Part
from fusionbench.adapt.views import Views
from fusionbench.callbacks import StoredFeatures
from fusionbench.distributed.strategy import strategy as chosen
from fusionbench.sections import TrainerOptions
from fusionbench.stage_one import stage_one_config

pytestmark = THIRD_PARTY
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.mark.parametrize(("method", "frozen"), [("frozen", True), ("mor", False), ("full", False)])
def test_only_a_frozen_base_without_adapters_is_stored(ready, method, frozen):
    loaded = config.load(ready.path, [f"adapt.name={method}"])
    views = build.strategy(loaded, ready.source.problem).views
    assert [views.is_frozen(view) for view in views.address] == [frozen, frozen]


@pytest.mark.parametrize(
    ("options", "trains"), [({}, True), ({"flip_p": 0.5}, False), ({"contrast": [0.9, 1.1]}, False)]
)
def test_augmented_training_pictures_are_left_out(ready, options, trains):
    loaded = config.load(ready.path, [f"data.transforms={PLAIN | options}".replace("None", "null").replace("'", "")])
    part = Part(build.data(loaded), "photo")
    assert part.trains is trains
    split = part.source.table["split"].iloc[part.rows]
    assert set(split) == ({"train", "val", "test"} if trains else {"val", "test"})


def test_a_run_on_one_modality_shares_the_table_of_a_run_on_two(ready):
    loaded = config.load(ready.path, ["data.batch_size=3"])
    alone = build.data(stage_one_config(loaded, "photo"))
    assert len(alone.table) < len(ready.source.table), "cases without a photograph are not among its own"
    encoder = ready.strategy.views.encoder("photo")
    names = [feature_store.identity("key", encoder, Part(s, "photo"), SETTING) for s in (alone, ready.source)]
    assert names[0] == names[1]


def test_autocast_and_parameters_held_in_half_precision_have_tables_of_their_own(ready, tmp_path, monkeypatch):
    settings = []
    monkeypatch.setattr(feature_store, "table", lambda *given: (settings.append(given[4]), True))
    for strategy, precision in (("auto", "32-true"), ("auto", "bf16-mixed"), ("zero3", "bf16-mixed")):
        options = TrainerOptions(strategy=strategy, precision=precision, accelerator="cpu")
        trainer = L.Trainer(accelerator="cpu", strategy=chosen(options), precision=precision, **QUIET)
        stored = StoredFeatures(SimpleNamespace(store=SimpleNamespace(folder=tmp_path)), ready.source, print)
        stored._made(trainer, ready.strategy.views, "photo", Part(ready.source, "photo"))
    encoder, part = ready.strategy.views.encoder("photo"), Part(ready.source, "photo")
    assert len({feature_store.identity("key", encoder, part, setting) for setting in settings}) == 3


def test_nothing_is_stored_of_encoders_that_are_held_in_parts(ready, tmp_path):
    tags = []
    run = SimpleNamespace(store=SimpleNamespace(folder=tmp_path), tag=tags.append)
    made = build.task(config.load(ready.path, []), ready.source)
    made.configure_model()
    for parameter in made.strategy.views.parameters():
        parameter.ds_id = 0  # as DeepSpeed marks them
    StoredFeatures(run, ready.source, print).on_fit_start(SimpleNamespace(world_size=1), made)
    assert tags == [{"fusionbench.features": "live"}]
    assert not made.strategy.views.tables


def test_auxiliary_encoders_of_early_intervention_read_the_store(ready, tmp_path):
    loaded = config.load(ready.path, ["fusion.name=early_intervention", "fusion.hidden=8"])
    made = build.strategy(loaded, ready.source.problem).eval()
    batch = next(iter(ready.source.eval_dataloader("val")))
    with torch.no_grad():
        live = made(batch.inputs, batch.present)
        tables = {name: ready.table(tmp_path, name)[0] for name in made.names}
        made.views.tables = {f"auxiliary/{name}": table for name, table in tables.items()}
        embedded = []
        real = made.views.embed
        made.views.embed = lambda inputs: embedded.extend(inputs) or real(inputs)
        stored = made(batch.inputs, batch.present)
    assert sorted(embedded) == ["primary/notes", "primary/photo"]
    torch.testing.assert_close(stored.logits, live.logits, rtol=1e-5, atol=1e-6)
    for name, here in live.branch_present.items():
        torch.testing.assert_close(stored.branches[name][here], live.branches[name][here], rtol=1e-5, atol=1e-6)


def test_a_head_trains_on_stored_features_as_on_live_ones(ready, tmp_path, monkeypatch):
    said, stored, data = fit(ready, tmp_path / "stored")
    assert "features of 'photo' computed once and stored (26 cases)" in said, said
    assert data.tags["fusionbench.features"] == "stored"
    encoded = []
    real = Views.encode
    with monkeypatch.context() as patch:
        patch.setattr(Views, "encode", lambda self, tokens, *a: encoded.extend(tokens) or real(self, tokens, *a))
        said, again, _ = fit(ready, tmp_path / "stored")
    # Nothing is encoded, but for a case whose operations are counted and one that is asked for maps.
    assert encoded == ["photo", "notes"] * 2
    assert "features of 'photo' read from store (26 cases)" in said
    assert "features of 'notes' read from store (32 cases)" in said
    assert again == stored, "it makes no difference which run filled the store"
    monkeypatch.setattr(Views, "is_frozen", lambda self, view: False)
    said, live, untagged = fit(ready, tmp_path / "live")
    assert "features" not in said
    assert untagged.tags["fusionbench.features"] == "live"
    assert untagged.tags["fusionbench.fingerprint"] == data.tags["fusionbench.fingerprint"]
    assert untagged.metrics["cost/gflops_per_case"] == data.metrics["cost/gflops_per_case"] > 0
    assert stored.keys() == live.keys()
    for name, points in live.items():
        for (step, value), (same, other) in zip(points, stored[name], strict=True):
            assert (step, value) == (same, pytest.approx(other, abs=1e-6, rel=1e-6)), name
