"""The yaml of a table: what it becomes, and each mistake in one sentence."""

import subprocess
import sys

import pytest
from program import write_config
from sweeping import EI, write_base, write_table

from fusionbench.ablate.baselines import alone
from fusionbench.ablate.table import read
from fusionbench.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tables")
    write_base(made)
    return made


def test_a_row_is_a_difference_from_base_and_column_and_overrides_come_last(folder):
    write_config(folder / "other.yaml", {"optimizer": {"name": "sgd", "lr": 0.5}, "fusion": {"name": "mean"}})
    columns = {"plain": {}, "other": {"extends": "other.yaml", "data": {"batch_size": 4}}}
    rows = {"base": None, "EI": EI}
    table = read(write_table(folder, columns=columns, rows=rows, seeds=[3, 4]), ["trainer.max_epochs=7"])
    assert (table.rows, table.columns, table.seeds) == (("base", "EI"), ("plain", "other"), (3, 4))
    plain, other = (table.config("base", column, 4) for column in table.columns)
    assert (plain.fusion, plain.optimizer["name"], plain.data.get("batch_size")) == ({"name": "concat"}, "adamw", None)
    assert (other.fusion, other.optimizer, other.data["batch_size"]) == (
        {"name": "mean"},
        {"name": "sgd", "lr": 0.5},
        4,
    )
    assert plain.seed == other.seed == 4
    assert plain.trainer.max_epochs == 7
    ei = table.config("EI", "other", 3)
    assert (ei.fusion, ei.init.stage1) == ({"name": "early_intervention", "hidden": 8}, "unimodal")


def test_without_columns_there_is_one_named_after_the_dataset(folder):
    assert read(write_table(folder)).columns == ("csv",)


def test_baselines_are_added_to_every_column_unless_a_row_is_one_already(folder):
    table = read(write_table(folder, baselines=None, rows={"EI": EI}))
    assert table.rows == ("age alone", "sex alone", "concat", "EI")
    assert table.own_unimodals["EI", "csv"] == ("age alone", "sex alone")
    assert table.own_concat == {("EI", "csv"): "concat"}
    alone = table.config("age alone", "csv", 0)
    assert list(alone.data["modalities"]) == ["age"]
    assert (alone.fusion, alone.init.stage1) == ({"name": "unimodal"}, "none")
    only_age = {"fusion": {"name": "unimodal", "modality": "age"}}
    there = read(write_table(folder, baselines=None, rows={"plain": {}, "years": only_age}))
    assert there.rows == ("sex alone", "plain", "years")
    assert there.own_unimodals["plain", "csv"] == ("years", "sex alone")
    none = read(write_table(folder, rows={"EI": EI}))
    assert (none.rows, none.own_unimodals["EI", "csv"], none.own_concat) == (("EI",), (), {})


def test_a_strategy_is_held_against_baselines_tuned_as_it_is(folder):
    rows = {"EI": EI, "tuned": {"fusion": {"name": "mean"}, "adapt": {"name": "lora"}}}
    table = read(write_table(folder, baselines=None, rows=rows))
    assert table.own_unimodals["EI", "csv"] == ("age alone", "sex alone")
    assert table.own_unimodals["tuned", "csv"] == ("age alone with lora", "sex alone with lora")
    assert table.own_concat == {("EI", "csv"): "concat", ("tuned", "csv"): "concat with lora"}
    assert table.config("concat with lora", "csv", 0).adapt == {"name": "lora"}


@pytest.mark.parametrize(
    "own",
    [
        *({"optimizer": {"lr": 0.5}}, {"scheduler": {"name": "constant"}}, {"trainer": {"max_epochs": 9}}),
        *({"task": {"label_smoothing": 0.1}}, {"data": {"batch_size": 4}}),
    ],
    ids=lambda own: next(iter(own)),
)
def test_a_strategy_is_held_against_baselines_trained_as_it_is(folder, own):
    rows = {"EI": EI, "mine": {"fusion": {"name": "mean"}, **own}}
    table = read(write_table(folder, baselines=None, rows=rows))
    names = ("age alone", "age alone with mine", "sex alone", "sex alone with mine", "concat", "concat with mine")
    assert sorted(table.rows[:-2]) == sorted(names)
    assert table.own_unimodals["EI", "csv"] == ("age alone", "sex alone")
    assert table.own_unimodals["mine", "csv"] == ("age alone with mine", "sex alone with mine")
    assert table.own_concat == {("EI", "csv"): "concat", ("mine", "csv"): "concat with mine"}
    (section,) = own
    mine, alone = (getattr(table.config(row, "csv", 0), section) for row in ("mine", "age alone with mine"))
    if section == "data":
        mine, alone = ({k: v for k, v in node.items() if k != "modalities"} for node in (mine, alone))
    assert mine == alone


def test_a_row_alone_is_the_baseline_of_what_is_trained_as_it_is(folder):
    quick = {"optimizer": {"lr": 0.5}}
    years = {"fusion": {"name": "unimodal", "modality": "age"}, **quick}
    rows = {"EI": EI, "years": years, "mine": {"fusion": {"name": "mean"}, **quick}}
    table = read(write_table(folder, baselines=["unimodal"], rows=rows))
    assert table.own_unimodals["EI", "csv"] == ("age alone", "sex alone")
    assert table.own_unimodals["mine", "csv"] == ("years", "sex alone with mine")


def test_a_row_may_be_in_some_columns_only(folder):
    table = read(write_table(folder, columns={"a": {}, "b": {}}, rows={"both": {}, "one": {"only": ["b"]}}))
    assert set(table.trees) == {("both", "a"), ("both", "b"), ("one", "b")}


def test_what_a_paper_printed_is_kept_by_row_and_column(folder):
    printed = {"mean": {"csv": {"mAP": 0.889, "AP/ill": 1}, "mean": {"mAP": 0.8}, "parameters": 8.87e6}}
    table = read(write_table(folder, published=printed, means={"all": ["csv"]}))
    assert table.published == {
        "mean": {"csv": {"mAP": 0.889, "AP/ill": 1.0}, "mean": {"mAP": 0.8, "parameters": 8.87e6}}
    }


def test_the_digest_is_of_what_is_run_and_not_of_where_it_is_kept(folder):
    table = write_table(folder)
    assert read(table).digest == read(table, ["tracking.folder=elsewhere"]).digest != read(table, ["seed=1"]).digest
    assert read(table).digest != read(table, ["optimizer.lr=0.5"]).digest


MISTAKES = {
    "unknown key": ({"colums": {}}, "unknown key 'colums'; did you mean 'columns'"),
    "no title": ({"title": None}, "needs 'title'"),
    "no base": ({"base": None}, "needs 'base'"),
    "base not there": ({"base": "bass.yaml"}, "table 'two': 'base' names 'bass.yaml', but there is no file"),
    "base near": ({"base": "bass.yaml"}, "did you mean 'base.yaml'"),
    "no rows": ({"rows": {}}, "needs 'rows'"),
    "row no difference": ({"rows": {"a": 3}}, "row 'a' must be a difference"),
    "row's key": ({"rows": {"a": {"fuson": {}}}}, "row 'a' has an unknown key 'fuson'; did you mean 'fusion'"),
    "row's seed": ({"rows": {"a": {"seed": 1}}}, "row 'a' sets 'seed'"),
    "strategy": ({"rows": {"a": {"fusion": {"name": "men"}}}}, "row 'a', column 'csv': unknown fusion 'men'; did you"),
    "option": ({"rows": {"a": {"trainer": {"epochs": 1}}}}, "unknown key 'trainer.epochs'"),
    "only": ({"rows": {"a": {"only": ["cvs"]}}}, "unknown column 'cvs'; did you mean 'csv'"),
    "seeds": ({"seeds": [0, 0]}, "'seeds' must be a list of different whole numbers"),
    "metric": ({"metric": "mAp"}, "unknown metric 'mAp'; did you mean 'mAP'"),
    "verdicts by some rows' score": (
        {"rows": {"a": {"fusion": {"name": "mdf"}}}, "metric": "dice"},
        "'metric' is 'dice', which not every strategy has",
    ),
    "score of no row": ({"metrics": ["dice"]}, "unknown metric 'dice'"),
    "near a row's score": (
        {"rows": {"a": {"fusion": {"name": "mdf"}}}, "metrics": ["dise"]},
        "unknown metric 'dise'; did you mean 'dice'",
    ),
    "answers of no row": ({"metrics": ["answer_none"]}, "unknown metric 'answer_none'"),
    "metrics": ({"metrics": "mAP"}, "'metrics' must be a list of different names"),
    "margin": ({"margin": 2}, "'margin' must be a number from 0 to below 1"),
    "baseline": ({"baselines": ["concats"]}, "unknown baseline 'concats'; did you mean 'concat'"),
    "concat taken": (
        {"baselines": ["concat"], "rows": {"concat": EI}},
        "row 'concat' which is not the baseline",
    ),
    "published row": ({"published": {"men": {"csv": {"mAP": 1}}}}, "unknown key 'men'; did you mean 'mean'"),
    "published column": ({"published": {"mean": {"cvs": {"mAP": 1}}}}, "unknown key 'cvs'; did you mean 'csv'"),
    "published metric": ({"published": {"mean": {"csv": {"mAP5": 1}}}}, "unknown metric 'mAP5'; did you mean 'mAP'"),
    "published value": ({"published": {"mean": {"csv": {"mAP": "high"}}}}, "'mAP' must be a number"),
    "published range": ({"published": {"mean": {"csv": {"mAP": [0.8, 0.3]}}}}, "'mAP' must be a range [low, high]"),
    "published three": ({"published": {"mean": {"csv": {"mAP": [0.1, 0.2, 0.3]}}}}, "a number or a range [low, high]"),
    "published percent": ({"published": {"mean": {"csv": {"mAP": 91}}}}, "0 to 1, not 91; did you mean 0.91?"),
    "mean": ({"means": {"all": ["cvs"]}}, "unknown column 'cvs'; did you mean 'csv'"),
    "mean's name": ({"means": {"csv": ["csv"]}}, "'csv' is both a column and a mean"),
    "column's name": ({"columns": {1: {}}}, "the name 1 in 'columns' must be text"),
}


def test_scores_of_a_rows_strategy_may_be_shown(folder):
    rows = {"mdf": {"fusion": {"name": "mdf", "decode": "generate"}}, "concat": {}}
    shown = ["mAUC", "dice", "answer_accuracy"]
    table = read(write_table(folder, rows=rows, metrics=shown, published={"mdf": {"csv": {"dice": 0.8}}}))
    assert (table.metric, table.metrics) == ("mAP", tuple(shown))
    assert table.published == {"mdf": {"csv": {"dice": 0.8}}}


def test_a_table_is_not_suggested_as_its_own_base(tmp_path):
    with pytest.raises(UserError) as told:
        read(write_table(tmp_path, "basis", base="basic.yaml"))
    assert "did you mean 'basis.yaml'" not in str(told.value)


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_sentence(folder, changes, sentence):
    with pytest.raises(UserError) as told:
        read(write_table(folder, **changes))
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)


def test_reading_a_table_needs_no_torch(folder):
    table = write_table(folder, baselines=None)
    program = (
        f"import sys; from fusionbench.ablate.table import read; read({str(table)!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_modality_alone_reads_no_masks():
    tree = {"data": {"name": "lidc", "modalities": ["shape", "ratings"], "masks": ["nodule"]}, "encoder": {}}
    assert alone(tree, "ratings")["data"] == {"name": "lidc", "modalities": ["ratings"]}


def test_masks_and_rates_of_a_strategys_own_parts_ask_for_no_baselines_of_their_own(folder):
    own = {"fusion": {"name": "mdf"}, "data": {"masks": ["spots"]}, "optimizer": {"parts": {"unet": 0.1}}}
    table = read(write_table(folder, baselines=None, rows={"EI": EI, "mdf": own}))
    assert table.rows == ("age alone", "sex alone", "concat", "EI", "mdf")
    assert set(table.own_concat.values()) == {"concat"}
    for row in ("age alone", "concat"):
        config = table.config(row, "csv", 0)
        assert ("masks" in config.data, "parts" in config.optimizer) == (False, False)


def test_of_some_scores_papers_print_a_range(folder):
    printed = {"mean": {"csv": {"mAP": [0.37, 0.78]}}}
    assert read(write_table(folder, published=printed)).published["mean"]["csv"] == {"mAP": (0.37, 0.78)}
