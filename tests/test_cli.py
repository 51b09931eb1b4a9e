"""The command line: what each command prints and ends with."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from layouts import make_derm7pt
from program import (
    THIRD_PARTY,
    as_overrides,
    command,
    edited,
    new_store,
    refused,
    runs,
    store,
    write_csv_experiment,
)

pytestmark = THIRD_PARTY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_csv_experiment(tmp_path_factory.mktemp("csv"))


@pytest.fixture(scope="module")
def fitted(folder):
    """A finished run of it."""
    runs_folder = new_store(folder / "runs")
    done = command("fit", "--config", folder / "fit.yaml", f"tracking.folder={runs_folder}", "tracking.run_name=first")
    assert done.code == 0, done.err
    return runs_folder


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
    run = runs(store(fitted))[-1]
    model = store(fitted).client.download_artifacts(run.info.run_id, "model")
    names = (run.info.run_id, run.info.run_id[:8], "first", model)
    shown = [command("test", name, "--folder", fitted) for name in names]
    assert [done.code for done in shown] == [0, 0, 0, 0], shown
    scores = [[word for word in done.out.split() if word.startswith("0.")] for done in shown]
    assert scores[0]
    assert scores[0] == scores[1] == scores[2]
    assert scores[0][: len(scores[3])] == scores[3], "a folder does not tell of the text alone"


def test_test_takes_no_place_of_tracking(fitted):
    for name, *more in (("test",), ("predict", "--out", fitted / "p.csv")):
        message = refused(name, "first", *more, f"tracking.folder={fitted}")
        assert "has no effect here, since nothing is tracked" in message
        assert f"--folder {fitted}" in message


def test_runs_that_are_not_there(fitted, tmp_path):
    for name in ("test", "predict"):
        assert "there is no run 'frist'" in refused(name, "frist", "--folder", fitted)
        assert "did you mean 'first'" in refused(name, "frist", "--folder", fitted)
        assert "no model.json" in refused(name, tmp_path)
        assert "there is no model 'x.ckpt'" in refused(name, "x.ckpt", "--folder", tmp_path)
    assert "no run in" in refused("test", "first", "--folder", tmp_path)


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


def test_ablation_tables_are_listed_and_shown_without_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    names = sorted(path.stem for path in Path("experiments/ablations").glob("*.yaml"))
    assert [line.split()[0] for line in command("list", "ablations").out.splitlines()] == names
    assert "did you mean 'demo_fusion'" in refused("show", "ablation", "demo_fuson")
    program = "import sys; from fusionbench.__main__ import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program, "show", "ablations", "ei_table6"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines()[-1] == "False"
    for key in ("columns", "rows", "baselines", "seeds", "runs", "metrics", "margin", "published"):
        assert f"\n{key} " in shown.stdout
    monkeypatch.chdir(tmp_path)
    assert "there is no ablation table in './experiments/ablations'" in refused("list", "ablations")


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


def test_show_explains_the_options_that_all_datasets_and_optimizers_have():
    shown = command("show", "data", "csv").out
    assert "Every data node has these options, too" in shown
    told = " ".join(shown.split())
    assert "text: What is read of texts, e.g. ``{content: label_free}``" in told
    for content in ("full", "findings", "label_free", "shuffled", "shuffled_words"):
        assert content in told
    assert "Which modalities to use" not in shown, "a csv says what its own are"
    assert "Which modalities to use" in command("show", "data", "mrnet").out
    assert "parts: Learning rate of each part" in command("show", "optimizer", "sgd").out
    assert "has these options, too" not in command("show", "fusion", "mean").out


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


def first_answer(address):
    """Return a page as soon as its server, which says that it has started just before it listens, answers."""
    for _ in range(100):
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(address, timeout=30) as page:
            return page.read()
        threading.Event().wait(0.1)
    return pytest.fail("the server does not answer")


@pytest.mark.slow
def test_ui_answers_in_a_browser(fitted):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "fusionbench", "ui", "--folder", str(fitted), "--port", str(port)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(program, start_new_session=True, **pipe) as server:
        try:
            lines = iter(server.stdout.readline, "")
            assert f"http://127.0.0.1:{port}" in next(lines)
            assert any("startup complete" in line for line in lines)
            assert b"MLflow" in first_answer(f"http://127.0.0.1:{port}/")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


LIGHT = """
import json, sys
from fusionbench.__main__ import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit:
        pass
heavy = "torch torchvision torchmetrics lightning mlflow timm transformers albumentations pandas".split()
print("HEAVY", sorted(set(heavy) & set(sys.modules)))
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
