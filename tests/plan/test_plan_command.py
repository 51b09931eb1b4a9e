"""``fusionbench plan`` through the command line."""

import subprocess
import sys

import pandas as pd
import pytest
from folders import write_llama_11b
from layouts import make_fundus
from program import THIRD_PARTY, as_overrides, command, refused, write_csv_experiment

pytestmark = THIRD_PARTY


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return write_csv_experiment(tmp_path_factory.mktemp("plan")) / "fit.yaml"


def test_a_plan_tells_all_before_anything_trains(experiment, tmp_path):
    done = command("plan", "--config", experiment, "--gpus", "2", "--gpu-memory", "40", "--out", tmp_path)
    assert done.code == 0, done.err
    for told in ("timm_vit of photo", "mor, 1 view of it", "concat", "zero3 optimizer", "The least communication"):
        assert told in done.out
    assert "trainer.strategy=ddp trainer.devices=2" in done.out
    assert "16 cases in 2 steps an epoch; at most 1 epoch, 16 cases in 2 steps" in done.out
    assert "test cases of" in done.out
    memory = pd.read_csv(tmp_path / "plan_memory.csv")
    assert list(memory.strategy) == ["ddp", "zero2", "zero3", "zero2", "zero3", "zero3"]
    assert set(memory.devices) == {2}
    parameters = pd.read_csv(tmp_path / "plan_parameters.csv")
    assert parameters.trained.sum() > 0
    assert "| strategy" in (tmp_path / "plan.md").read_text("utf-8")
    assert not (experiment.parent / "runs").exists()


def test_frozen_experts_are_not_planned_as_trained(experiment):
    """DynMM's are those of the stage-1 runs; all that is trained is the joint head and the gate."""
    experts = [f"fusion={{name: dynmm, experts: {kind}}}" for kind in ("frozen", "trained")]
    frozen, trained = (
        command("plan", "--config", experiment, own, "adapt.name=full", "init.stage1=unimodal") for own in experts
    )
    assert frozen.code == trained.code == 0, frozen.err
    assert counts(frozen.out)[0] < 0.2 * counts(trained.out)[0]
    assert counts(frozen.out)[1] > counts(frozen.out)[0]


def counts(said):
    """Return the numbers behind "all" in the table of parameters: trained, and frozen if there are any."""
    line = next(line for line in said.splitlines() if line.split()[:1] == ["all"])
    return [int(number.replace(",", "")) for number in line.split()[1:]]


def test_what_does_not_fit_is_cut_or_refused(experiment):
    small = command("plan", "--config", experiment, "--gpus", "1", "--gpu-memory", "0.0001")
    assert "Nothing fits into 0.0001 GB" in small.out
    unlimited = command("plan", "--config", experiment, "trainer.accelerator=cpu")
    assert "Give --gpu-memory" in unlimited.out


def test_mistakes_are_one_sentence(experiment, tmp_path):
    plan = ("plan", "--config", experiment)
    assert "cannot be shared out equally among 3 devices; set data.batch_size=6" in refused(*plan, "--gpus", "3")
    assert "'--gpus' must be" in refused(*plan, "--gpus", "0")
    assert "'--gpu-memory' must be" in refused(*plan, "--gpu-memory", "-1")
    assert "no option 'fusion.bogus'" in refused(*plan, "fusion.bogus=1")
    assert "nowhere.csv" in refused(*plan, f"data.path={tmp_path / 'nowhere.csv'}")
    assert "--config" in refused("plan")


def test_help_imports_nothing_heavy():
    code = "import sys; from fusionbench.__main__ import main\ntry: main(['plan', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'lightning', 'pandas', 'rich'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--gpu-memory" in done.stdout


def test_it_needs_no_deepspeed(experiment, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert command("plan", "--config", experiment, "--gpus", "2").code == 0


@pytest.mark.slow
def test_an_11b_model_is_planned_without_its_weights(tmp_path):
    """The paper's full model, from the config of its language model alone."""
    model = write_llama_11b(tmp_path / "model")
    data = {"root": str(make_fundus(tmp_path / "data")), "cache": str(tmp_path / "cache")}
    encoders = {"text": {"weights": str(model)}, "cfp": {"weights": "random"}}
    overrides = as_overrides({"data": data, "encoder": encoders})
    config = "experiments/mdf_fundus.yaml"
    done = command("plan", "--config", config, *overrides, "--gpus", "4", "--gpu-memory", "80", "--out", tmp_path)
    assert done.code == 0, done.err
    assert "10,670,220,835" in done.out
    assert "The least communication that fits" in done.out
    assert "the config as it is" in done.out
    memory = pd.read_csv(tmp_path / "plan_memory.csv").set_index(["strategy", "offload"]).total
    assert memory["ddp", "none"] > 200e9
    assert memory["zero3", "none"] < 80e9
