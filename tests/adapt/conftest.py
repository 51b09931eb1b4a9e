"""Data and a frozen strategy on them, built once."""

import pytest
from layouts import CSV_MODALITIES, make_csv
from program import VIT, bert, write_config
from stored import PLAIN, Ready

from fusionbench import build, config


@pytest.fixture(scope="session")
def ready(tmp_path_factory):
    """Photographs, of which every fifth case has none, and notes; a frozen ViT and a frozen BERT."""
    folder = tmp_path_factory.mktemp("features")
    csv = make_csv(folder, patients=16)
    modalities = {"photo": CSV_MODALITIES["photo"] | {"instances": 2}, "notes": CSV_MODALITIES["notes"]}
    data = {"name": "csv", "path": str(csv), "modalities": modalities, "size": 32, "batch_size": 6}
    tree = {
        "data": data | {"cache": str(folder / "cache"), "transforms": PLAIN},
        "encoder": {"photo": VIT, "notes": bert(folder / "tokenizer")},
        "adapt": {"name": "frozen"},
        "fusion": {"name": "concat"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "trainer": {"max_epochs": 2, "progress": False, "accelerator": "cpu"},
        "tracking": {"log_every": 1},
    }
    path = write_config(folder / "fit.yaml", tree)
    loaded = config.load(path, [])
    source = build.data(loaded)
    return Ready(path, source, build.strategy(loaded, source.problem).eval())
