"""What a user who starts the processes by torchrun is told of a mistake: a line of each process, before its report."""

import os
import subprocess
import sys

from layouts import make_csv
from program import TABLE, THIRD_PARTY, new_store, write_config

pytestmark = THIRD_PARTY
ENVIRONMENT = {"FUSIONBENCH_ID_KEY": "a key", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def by_torchrun(folder, *overrides):
    """Return what two processes started by torchrun say, without torchrun's own report."""
    modalities = {name: {"kind": "table", "columns": [name]} for name in ("age", "sex")}
    tree = {
        "data": {"name": "csv", "path": str(make_csv(folder, patients=16)), "modalities": modalities},
        "encoder": TABLE,
        "fusion": {"name": "concat"},
        "trainer": {"max_epochs": 1, "progress": False, "accelerator": "cpu", "devices": 2},
        "tracking": {"folder": str(new_store(folder / "runs"))},
    }
    run = ["-m", "fusionbench", "fit", "--config", str(write_config(folder / "fit.yaml", tree)), *overrides]
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *run]
    kept = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | ENVIRONMENT
    done = subprocess.run(program, env=kept, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    own = ("error: ", "interrupted; ")
    return [line for line in done.stderr.split("Traceback", 1)[0].splitlines() if line.startswith(own)], done.stderr


def test_what_can_be_seen_before_the_processes_meet_each_of_torchruns_says_in_a_line(tmp_path):
    said, whole = by_torchrun(tmp_path, "data.batch_size=3")
    assert said, whole
    assert whole.count("Traceback") == 1, "torchrun's"
    assert all(line.startswith(("error: data.batch_size 3 can't be", "interrupted; ")) for line in said), whole


def test_beside_rank_0s_sentence_the_others_say_a_line(tmp_path):
    said, whole = by_torchrun(tmp_path, "data.masks=[vessels]")
    assert whole.count("Traceback") == 1, whole
    assert any(line.startswith("error: ") and "vessels" in line for line in said), whole
