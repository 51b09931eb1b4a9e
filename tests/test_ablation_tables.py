"""Every table in ``experiments/ablations``: configs that are right with no data there, and no name forgotten."""

import pytest
from program import EXPERIMENTS

from fusionbench import registry
from fusionbench.ablate.keys import PARAMETERS
from fusionbench.ablate.table import MEAN, Table, read
from fusionbench.metrics import HEADLINE

PATHS = sorted((EXPERIMENTS / "ablations").glob("*.yaml"))
BASELINES = {"unimodal", "concat"}


@pytest.fixture(scope="module")
def tables():
    """Read each once; reading checks the config of every row and column, and needs no data."""
    return {path.stem: read(path, ["data.root=nowhere"]) for path in PATHS}


def named(tables, kind, name) -> set[str]:
    table: Table = tables[name]
    return {tree[kind]["name"] for tree in table.trees.values()}


@pytest.mark.parametrize("name", [path.stem for path in PATHS])
def test_a_table_is_whole(tables, name):
    table = tables[name]
    assert {row for row, _ in table.trees} == set(table.rows)
    assert {column for _, column in table.trees} == set(table.columns)
    for printed in table.published.values():
        assert set(printed) <= {*table.columns, *table.means, MEAN}
    assert table.metric in HEADLINE


@pytest.mark.parametrize("name", [path.stem for path in PATHS])
def test_published_numbers_stand_where_a_run_does(tables, name):
    table = tables[name]
    for row, printed in table.published.items():
        for column, values in printed.items():
            assert column in {*table.means, MEAN} or (row, column) in table.trees, (row, column)
            ends = [v if isinstance(v, tuple) else (v, v) for metric, v in values.items() if metric != PARAMETERS]
            assert all(0 < low <= high <= 1 for low, high in ends)


@pytest.mark.parametrize("name", [path.stem for path in PATHS])
def test_every_strategy_has_its_own_modalities_alone(tables, name):
    table = tables[name]
    strategies = {cell for cell, tree in table.trees.items() if tree["fusion"]["name"] != "unimodal"}
    assert set(table.own_unimodals) == strategies
    for (row, column), alone in table.own_unimodals.items():
        tree = table.trees[row, column]
        rivals = [table.trees[name, column] for name in alone]
        if tree["data"].get("modalities"):
            assert [m for rival in rivals for m in rival["data"]["modalities"]] == list(tree["data"]["modalities"])
        if (row, column) in table.own_concat:
            rivals.append(table.trees[table.own_concat[row, column], column])
        for rival in rivals:
            assert rival["adapt"] == tree["adapt"]
            assert rival["encoder"].items() <= tree["encoder"].items()


@pytest.mark.parametrize(("name", "unfit"), [("demo_fusion", set()), ("demo_views", {"transchex"})])
def test_demo_of_fusion_forgets_no_strategy_that_takes_any_encoder(tables, name, unfit):
    free = {s for s in registry.names("fusion") if not registry.describe("fusion", s).constants.get("encoders")}
    assert named(tables, "fusion", name) == (free | BASELINES) - unfit
    assert {own for cell, own in tables[name].own_concat.items()} == {"concat"}


def test_demo_of_tuning_forgets_no_method(tables):
    assert named(tables, "adapt", "demo_tuning") == set(registry.names("adapt"))
    assert not tables["demo_tuning"].own_unimodals


def test_table_3_prints_what_the_paper_prints(tables):
    ours = tables["ei_table3"].published["EI"]
    assert [ours[f"{data} CLIP"]["mAP"] for data in ("MMC-AMD", "Derm7pt", "MRNet")] == [0.889, 0.721, 0.861]
    assert ours["MEAN CLIP"] == {"mAP": 0.824, PARAMETERS: 8.9e6}
    assert ours["MEAN DINOv2"]["mAP"] == 0.841


def test_table_8_tunes_the_modalities_alone_as_each_row(tables):
    table = tables["ei_table8"]
    names = {row: table.own_unimodals[row, "MMC-AMD CLIP"] for row in ("MoR", "LoRA")}
    assert names == {"MoR": ("cfp alone", "oct alone"), "LoRA": ("cfp alone with lora", "oct alone with lora")}
    assert table.own_concat["LoRA", "MMC-AMD CLIP"] == "concat with lora"


@pytest.mark.parametrize("name", ["mdf_fusion", "demo_mdf"])
def test_rows_of_mdf_differ_in_their_fusion_alone(tables, name):
    table = tables[name]
    assert len(table.rows) == 10  # three baselines
    assert table.config("MLLM alone" if name == "mdf_fusion" else "mllm", table.columns[0], 0).fusion["name"] == "mllm"
    rates = set()
    for tree in table.trees.values():
        own = dict(tree["optimizer"])
        rates.add((own.pop("parts", None) or {"language_model": own["lr"]})["language_model"])
        assert (tree["trainer"], tree["scheduler"], tree["adapt"]) == tuple(
            table.trees["MDF", table.columns[0]][key] for key in ("trainer", "scheduler", "adapt")
        )
    assert len(rates) == 1
