"""``fusionbench compare`` through the command line, on runs in a real store."""

import pandas as pd
import pytest
import yaml
from contestants import contestants
from layouts import make_csv
from matplotlib.image import imread
from program import THIRD_PARTY, command, new_store, refused, store, write_config

from fusionbench.report.compared_runs import from_table
from fusionbench.tracking import TrackedRun

pytestmark = THIRD_PARTY
QUALITIES = {"concat": 3.0, "early_intervention": 2.9, "unimodal": 0.3}


def log(place, name, fusion, seed, table, **tags):
    """Track a finished run with these predictions."""
    modalities = "oct" if fusion == "unimodal" else "oct, cfp"
    own = {"fusionbench.fusion": fusion, "fusionbench.modalities": modalities, "fusionbench.random_weights": "none"}
    run = place.start(name, f"{name}{seed}", own | tags)
    table.to_parquet(run.folder / "predictions.parquet")
    config = {"fusion": {"name": fusion}, "adapt": {"name": tags.get("adapt", "mor")}, "seed": seed}
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config | {"tracking": {"run_name": name}}))
    for file in ("predictions.parquet", "config.yaml"):
        run.log_artifact(run.folder / file)
    run.finish("FINISHED")
    return run.run_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store with three methods of two seeds, one of them twice tuned, a run on other cases, and a table."""
    place = store(new_store(tmp_path_factory.mktemp("compare") / "runs"))
    rows = []
    for method in contestants(QUALITIES, cases=90, groups=45, seeds=(0, 1)):
        for seed, table in zip(method.seeds, method.runs, strict=True):
            tags = {"fusionbench.allow": "near_duplicates"} if method.name == "unimodal" else {}
            run_id = log(place, f"{method.name}-s{seed}", method.name, seed, table, **tags)
            rows.append((method.name, "first", seed, run_id, "finished", ""))
    log(place, "lora-s0", "concat", 0, method.runs[0], adapt="lora", **{"fusionbench.random_weights": "oct"})
    log(place, "elsewhere", "mean", 0, contestants({"x": 1.0}, cases=91)[0].runs[0])
    rows.append(("mean", "first", 0, "", "failed", "out of memory"))
    log_table(place, "demo", pd.DataFrame(rows, columns=["row", "column", "seed", "run_id", "status", "reason"]))
    return place.folder


def log_table(place, name, records):
    parent = place.start(name, "t", {"fusionbench.table": name, "fusionbench.level": "table"})
    records.to_csv(parent.folder / "runs.csv", index=False)
    parent.log_artifact(parent.folder / "runs.csv")
    parent.finish("FAILED")


def test_runs_that_differ_by_seed_are_one_method(folder, tmp_path):
    names = [f"{name}-s{seed}" for name in QUALITIES for seed in (1, 0)]
    done = command("compare", *names, "--folder", folder, "--out", tmp_path, "--crosscheck")
    assert done.code == 0, done.err
    assert "90 cases of 45 groups" in done.out
    assert (
        "note: oct alone was run although the data have findings that were let through (near_duplicates)." in done.out
    )
    answer = "the only modality alone that is given (oct alone, mAP +0."
    assert f"Did fusion help? concat: too few cases to tell from {answer}" in done.out  # two seeds
    assert "DeLong" in done.out
    assert "In mAP no method is shown to be better" in done.out.splitlines()[-1]
    frame = pd.read_csv(tmp_path / "comparison.csv")
    assert frame["a"].tolist() == ["concat", "concat", "early_intervention"]
    assert "## Did fusion help?" in (tmp_path / "comparison.md").read_text()
    assert imread(tmp_path / "comparison.png").std() > 0.05


def test_methods_of_one_strategy_are_told_apart_by_their_options(folder):
    done = command("compare", "concat-s0", "lora-s0", "--folder", folder)
    assert "concat (adapt.name=mor) is better in mAP than concat (adapt.name=lora)." in done.out
    assert "note: concat (adapt.name=lora) started from random weights (oct)." in done.out
    assert "One seed of each method" in done.out


def test_a_table(folder, tmp_path):
    done = command("compare", "--table", "demo", "--folder", folder, "--metric", "accuracy", "--out", tmp_path)
    assert done.code == 0, done.err
    assert "note: mean (seed 0) is left out: out of memory." in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"comparison-first.{e}" for e in ("csv", "md", "png")]
    assert "these tables have 1" in refused(
        "compare", "--table", "demo", "--folder", folder, "--diagram", tmp_path / "x.png"
    )


def test_a_tables_own_metric_and_margin_go_where_no_flag_says_otherwise(folder):
    place = store(folder)
    (table,) = (run for run in place.search_all("tags.`fusionbench.table` = 'demo'"))
    TrackedRun(place, table.info.run_id).tag({"fusionbench.metric": "accuracy", "fusionbench.margin": "0.3"})
    try:
        (own,) = from_table(place, "demo")
        assert (own.metric, own.margin) == ("accuracy", 0.3)
        for flags, metric in (((), "accuracy"), (("--metric", "mAUC"), "mAUC")):
            done = command("compare", "--table", "demo", "--folder", folder, *flags)
            assert f"in {metric}" in done.out.lower().replace(metric.lower(), metric), done.out
    finally:
        TrackedRun(place, table.info.run_id).tag({"fusionbench.metric": "mAP", "fusionbench.margin": "0.02"})


def test_strategies_of_a_table_are_held_against_their_own_baselines(tmp_path):
    place = store(new_store(tmp_path / "runs"))
    own = {"EI": ("oct alone", "concat"), "EI lora": ("oct alone with lora", ""), "mean": ("cfp alone", "")}
    kinds = {"oct alone": "unimodal", "oct alone with lora": "unimodal", "concat": "concat"}
    kinds |= {"concat with lora": "concat", "EI": "early_intervention", "EI lora": "early_intervention", "mean": "mean"}
    rows = []
    for number, method in enumerate(contestants(dict.fromkeys(kinds, 1.0) | {"oct alone": 4.0}, cases=90, groups=45)):
        run_id = log(place, method.name, kinds[method.name], number, method.runs[0])
        rows.append((method.name, "first", 0, run_id, "finished", "", *own.get(method.name, ("", ""))))
    rows.append(("cfp alone", "first", 0, "", "failed", "out of memory", "", ""))
    columns = ["row", "column", "seed", "run_id", "status", "reason", "unimodals", "concat"]
    log_table(place, "own", pd.DataFrame(rows, columns=columns))
    done = command("compare", "--table", "own", "--folder", place.folder)
    assert done.code == 0, done.err
    answers = [line for line in done.out.splitlines() if "Did fusion help?" in line]
    assert answers[0] == "note: Did fusion help? Not answered for mean: cfp alone has no result."
    assert answers[1].startswith("Did fusion help? EI: worse than its best unimodal (oct alone, mAP -0.")
    assert "concat (mAP" in answers[1]
    assert answers[2].startswith("Did fusion help? EI lora: too few cases to tell from")
    assert "(oct alone with lora, mAP" in answers[2]
    assert "concat" not in answers[2]
    assert len(answers) == 3
    log_table(place, "none", pd.DataFrame(rows, columns=columns).assign(unimodals="", concat=""))
    assert "Did fusion help" not in command("compare", "--table", "none", "--folder", place.folder).out


def test_mistakes(folder, tmp_path):
    assert "disagree on the label of" in refused("compare", "concat-s0", "elsewhere", "--folder", folder)
    assert "have the same config and seed 0" in refused("compare", "concat-s0", "concat-s0", "--folder", folder)
    assert "did you mean 'demo'" in refused("compare", "--table", "demos", "--folder", folder)
    both = ("compare", "concat-s0", "unimodal-s0")
    assert "did you mean 'mAUC'" in refused(*both, "--metric", "mAUCC", "--folder", folder)
    assert "nothing to compare 'concat-s0' with" in refused("compare", "concat-s0", "--folder", folder)
    assert "must be a number such as 0.5, not 'x'" in refused(*both, "--margin", "x")
    assert "there is no run 'nowhere'" in refused("compare", "nowhere", "--folder", folder)
    assert "give their place with --folder" in refused("compare", "x", "--folder", tmp_path / "none")
    assert "runs (ids or names) or --table" in refused("compare", "--folder", folder)
    assert "takes overrides" in refused("compare", "concat-s0", "seed=1", "--folder", folder)
    assert "--diagram needs tables" in refused("compare", "concat-s0", "--diagram", "x.png", "--folder", folder)


def test_plan_from_numbers():
    done = command("compare", "--plan", "--cases", "79", "--groups", "60", "--classes", "4")
    assert done.code == 0, done.err
    assert "With 79 test cases of 60 groups" in done.out
    assert "cannot be shown" in done.out
    assert "can be shown" in command("compare", "--plan", "--cases", "90000").out
    assert "wants --config FILE, or --cases N" in refused("compare", "--plan")
    assert "5 cases, 9 groups" in refused("compare", "--plan", "--cases", "5", "--groups", "9")
    assert "must be a whole number, not 'abc'" in refused("compare", "--plan", "--cases", "abc")
    assert "'score' must be" in refused("compare", "--plan", "--cases", "50", "--score", "1.2")


def test_plan_from_a_config_counts_its_test_split(tmp_path):
    modalities = {"labs": {"kind": "table", "columns": ["age", "sex"]}}
    node = {"name": "csv", "path": str(make_csv(tmp_path, patients=16)), "modalities": modalities}
    path = write_config(tmp_path / "plan.yaml", {"data": node})
    done = command("compare", "--plan", "--config", path)
    assert done.code == 0, done.err
    assert "With 8 test cases of 4 groups" in done.out
    assert "AUC/healthy" in done.out
    assert "leave out --cases" in refused("compare", "--plan", "--config", path, "--cases", "9")
    assert "no option 'data.pathh'" in refused("compare", "--plan", "--config", path, "data.pathh=x")
    empty = write_config(tmp_path / "empty.yaml", {"seed": 1})
    assert "names no dataset" in refused("compare", "--plan", "--config", empty)
