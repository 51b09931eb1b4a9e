"""Which baselines a table's yaml comes to: found among its rows or added, for each tuning and encoder."""

import pytest
from program import VIT, write_config

from fusionbench.ablate.table import read
from fusionbench.errors import UserError

BASE = {
    "data": {
        "name": "csv",
        "path": "none.csv",
        "modalities": {m: {"kind": "image", "column": m} for m in ("cfp", "oct")},
    },
    "encoder": VIT,
    "adapt": {"name": "mor"},
    "fusion": {"name": "early_intervention"},
    "init": {"stage1": "unimodal"},
}
LORA = {"adapt": {"name": "lora"}}
BIG = {"encoder": {"model": "test_vit2"}}


def table(folder, rows, **changes):
    write_config(folder / "base.yaml", BASE)
    return read(write_config(folder / "some.yaml", {"title": "Some", "base": "base.yaml", "rows": rows, **changes}))


def own(made, row):
    return made.own_unimodals[row, "csv"], made.own_concat.get((row, "csv"))


def test_rows_like_the_base_share_its_baselines(tmp_path):
    made = table(tmp_path, {"EI": {}, "mean": {"fusion": {"name": "mean"}}})
    assert made.rows == ("cfp alone", "oct alone", "concat", "EI", "mean")
    assert own(made, "EI") == own(made, "mean") == (("cfp alone", "oct alone"), "concat")
    assert own(made, "concat") == (("cfp alone", "oct alone"), None)


def test_another_tuning_or_encoder_has_baselines_of_its_own_once(tmp_path):
    rows = {"EI": {}, "EI LoRA": LORA, "mean LoRA": {**LORA, "fusion": {"name": "mean"}, "init": {}}, "EI big": BIG}
    made = table(tmp_path, rows)
    assert made.rows[:9] == (
        *("cfp alone", "oct alone", "cfp alone with lora", "oct alone with lora"),
        *("cfp alone with EI big", "oct alone with EI big", "concat", "concat with lora", "concat with EI big"),
    )
    assert own(made, "EI LoRA") == own(made, "mean LoRA")
    assert own(made, "EI LoRA") == (("cfp alone with lora", "oct alone with lora"), "concat with lora")
    assert own(made, "EI big")[1] == "concat with EI big"
    alone = made.trees["oct alone with lora", "csv"]
    assert (alone["adapt"], alone["encoder"], alone["fusion"]) == (LORA["adapt"], VIT, {"name": "unimodal"})
    assert (list(alone["data"]["modalities"]), alone["init"]) == (["oct"], {})
    assert made.trees["concat with EI big", "csv"]["encoder"]["model"] == "test_vit2"


def test_a_modality_alone_pools_slices_as_stage_1_does(tmp_path):
    overrides = {"fusion": {"slice_pool": "max"}, "trainer": {"max_epochs": 3}}
    made = table(tmp_path, {"EI": {"init": {"overrides": overrides}}, "EI LoRA": LORA | {"init": {"stage1": "none"}}})
    assert made.trees["oct alone", "csv"]["fusion"] == {"name": "unimodal"}, "the column's own sets no overrides"
    column = {"here": {"init": {"overrides": overrides}}}
    made = table(tmp_path, {"EI": {}, "EI LoRA": LORA | {"init": {"stage1": "none"}}}, columns=column)
    for row in ("oct alone", "oct alone with lora"):
        tree = made.trees[row, "here"]
        assert (tree["fusion"], tree["init"]) == ({"name": "unimodal", "slice_pool": "max"}, {})
        assert "max_epochs" not in tree.get("trainer", {})


def test_two_options_of_one_tuning_are_told_apart_by_their_rows(tmp_path):
    made = table(tmp_path, {"EI": {}, "no bypass": {"adapt": {"bypass": False}}})
    assert own(made, "no bypass") == (("cfp alone with no bypass", "oct alone with no bypass"), "concat with no bypass")


def test_an_encoder_of_one_modality_leaves_the_other_as_it_is(tmp_path):
    both = {"cfp": VIT, "oct": VIT}
    made = table(
        tmp_path, {"EI": {"encoder": both}, "EI big": {"encoder": {"cfp": {**VIT, "model": "test_vit2"}, "oct": VIT}}}
    )
    assert own(made, "EI big")[0] == ("cfp alone with EI big", "oct alone")
    assert own(made, "EI")[0] == ("cfp alone", "oct alone"), "one encoder for all is the same for each"


def test_given_rows_are_taken_for_what_they_are(tmp_path):
    alone = {m: {"fusion": {"name": "unimodal", "modality": m}} for m in ("cfp", "oct")}
    rows = {
        "fundus": alone["cfp"],
        "scan": alone["oct"],
        "scan LoRA": {**alone["oct"], **LORA},
        "EI": {},
        "EI LoRA": LORA,
    }
    made = table(tmp_path, {**rows, "plain": {"fusion": {"name": "concat"}}})
    assert own(made, "EI") == (("fundus", "scan"), "plain")
    assert own(made, "EI LoRA") == (("cfp alone with lora", "scan LoRA"), "concat with lora")
    assert ("scan LoRA", "csv") not in made.own_unimodals, "one modality alone is no strategy"


def test_no_baselines_are_added_where_the_table_wants_none(tmp_path):
    made = table(tmp_path, {"EI": {}, "EI LoRA": LORA}, baselines=[])
    assert made.rows == ("EI", "EI LoRA")
    assert own(made, "EI LoRA") == ((), None)


def test_a_name_that_a_baseline_needs_is_refused(tmp_path):
    with pytest.raises(UserError, match="has a row 'cfp alone' which is not the baseline of that name"):
        table(tmp_path, {"EI": {}, "cfp alone": {"fusion": {"name": "mean"}}})


def test_an_unknown_baseline_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"unknown baseline 'unimodel'.*unimodal"):
        table(tmp_path, {"EI": {}}, baselines=["unimodel"])
