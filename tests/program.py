"""What the tests of the whole program share: its command line, encoders small enough for it, and the tracked runs."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import yaml
from layouts import CSV_MODALITIES, make_csv, write_rows

from fusionbench import config
from fusionbench.__main__ import main
from fusionbench.sections import TrackingOptions
from fusionbench.tracking import Store

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
THIRD_PARTY = [pytest.mark.filterwarnings("ignore:.*``noload`` loader strategy.*")]  # MLflow's, of SQLAlchemy
WORDS = (
    *("the", "eye", "looks", "healthy", "ill", "seen", "by", "reader", "solid", "round", "sharp"),
    *("soft", "tissue", "absent", "obvious", "no", "benign", "malignant", "acquired", "inherited"),
)
TABLE = {"name": "table", "width": 16, "depth": 1, "heads": 2}
UNET = {"name": "unet", "backbone": "tu-test_efficientnet", "weights": "random"}
VIT_PARTS = {"model": "test_vit", "weights": "random"}
VIT = {"name": "timm_vit", "model": "test_vit", "weights": "random"}


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


def command(*arguments: object, **environment: str) -> Done:
    """Run ``fusionbench`` in this process, with no tracking server and no network, and return what it printed."""
    out, err = io.StringIO(), io.StringIO()
    variables = {"HF_HUB_OFFLINE": "1", "COLUMNS": "160", **environment}
    with mock.patch.dict(os.environ, variables), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if "MLFLOW_TRACKING_URI" not in environment:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse ends this way
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def refused(*arguments: object, **environment: str) -> str:
    """Run a command that must fail as a user's mistake does: status 2 and one sentence; return the sentence."""
    done = command(*arguments, **environment)
    assert done.code == 2, (done.code, done.out, done.err)
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: "), done.err
    assert "Traceback" not in done.out + done.err
    return lines[0]


def tokenizer(folder: Path) -> Path:
    """Write a WordPiece tokenizer of a few words and return its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    vocabulary = {word: number for number, word in enumerate([*special.values(), *WORDS])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[SEP]", **special).save_pretrained(str(folder))
    return folder


def bert(folder: Path) -> dict[str, object]:
    """Return the node of a random BERT of width 32, its tokenizer written to ``folder``."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    shape = {"model_type": "bert", "vocab_size": len(WORDS) + 4, "max_position_embeddings": 64, **sizes}
    return {"name": "hf_text", "weights": "random", "tokenizer": str(tokenizer(folder)), "config": shape}


def llama(folder: Path) -> dict[str, object]:
    """Return the node of a random Llama of 8 layers, its tokenizer written to ``folder``."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = {"model_type": "llama", "vocab_size": len(WORDS) + 4, "intermediate_size": 48, **sizes}
    return {"name": "llama", "weights": "random", "tokenizer": str(tokenizer(folder)), "config": shape, "patch": 8}


def mllama(folder: Path) -> dict[str, object]:
    """Return the node of a random Llama 3.2 Vision of 6 layers with 4 that read a picture, and its tokenizer."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    words = {"vocab_size": len(WORDS) + 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {**sizes, **words, "num_hidden_layers": 39, "cross_attention_layers": [3, 18, 28, 38]}
    seeing = {"hidden_size": 16, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2}
    seeing |= {"intermediate_size": 24, "image_size": 28, "patch_size": 14, "vision_output_dim": 48}
    shape = {"text_config": text, "vision_config": {**seeing, "intermediate_layers_indices": [0, 1]}}
    return {"name": "mllama", "weights": "random", "tokenizer": str(tokenizer(folder)), "config": shape}


def tiny_encoders(experiment: Path, folder: Path) -> list[str]:
    """Return overrides that put a small random encoder of the same kind in place of each that a config names."""
    node = config.read(experiment)["encoder"]
    own = bert(folder / "tokenizer")
    patches = {k: v for k, v in own.items() if k != "tokenizer"} | {"name": "hf_patches", "patch": 8}
    decoder = llama(folder / "tokenizer")
    seeing = {k: v for k, v in decoder.items() if k != "patch"} | {"name": "llama_vision", "vision": VIT_PARTS}
    small = {"timm_vit": VIT, "hf_text": own, "hf_patches": patches, "llama": decoder, "llama_vision": seeing}
    small |= {"mllama": mllama(folder / "tokenizer"), "unet": UNET}
    if "name" in node:
        return as_overrides({"encoder": small[node["name"]]})
    return as_overrides({"encoder": {modality: small[own["name"]] for modality, own in node.items()}})


def as_overrides(tree: Mapping[str, object]) -> list[str]:
    """Return ``key=value`` for each leaf of a tree."""
    flow = {key: yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n") for key, value in flat(tree)}
    return [f"{key}={' '.join(text.split())}" for key, text in flow.items()]


def flat(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Return a tree's leaves by dotted key."""
    leaves: list[tuple[str, object]] = []
    for key, value in tree.items():
        leaves += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return leaves


def write_config(path: Path, tree: Mapping[str, object]) -> Path:
    """Write a config file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(tree), sort_keys=False), encoding="utf-8")
    return path


def write_csv_experiment(folder: Path) -> Path:
    """Write a csv with photographs, notes and a table, and ``fit.yaml``, which fits them in one epoch."""
    path = make_csv(folder, patients=16)
    modalities = {name: CSV_MODALITIES[name] for name in ("photo", "notes", "labs")}
    data = {"name": "csv", "path": str(path), "modalities": modalities, "size": 32, "cache": str(folder / "cache")}
    tree = {
        "data": data,
        "encoder": {"photo": VIT, "notes": bert(folder / "tokenizer"), "labs": TABLE},
        "fusion": {"name": "concat"},
        "trainer": {"max_epochs": 1, "progress": False},
    }
    write_config(folder / "fit.yaml", tree)
    return folder


Row = dict[str, str]


def edited(folder: Path, name: str, change: Callable[[Row], Row | None]) -> str:
    """Write the csv again beside itself with every row changed, without those for which ``change`` returns None.

    Returns:
        The override that points to it.
    """
    with (folder / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in map(change, csv.DictReader(file)) if row is not None]
    write_rows(folder / name, [list(rows[0]), *(row.values() for row in rows)])
    return f"data.path={folder / name}"


@cache
def _empty_database() -> bytes:
    """Return a fresh MLflow database; its migrations take seconds, so they run once."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        MlflowClient(f"sqlite:///{path}").search_experiments()
        return path.read_bytes()


def new_store(folder: Path) -> Path:
    """Put an empty tracking store into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mlflow.db").write_bytes(_empty_database())
    return folder


def store(folder: Path, experiment: str = "fusionbench") -> Store:
    """Open the local store in a folder."""
    with mock.patch.dict(os.environ):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        return Store(TrackingOptions(folder=str(folder), experiment=experiment))


def runs(place: Store) -> list:
    """Return all MLflow runs of a store, oldest first."""
    return place.client.search_runs([place.experiment], order_by=["attributes.start_time ASC"])


def history(place: Store, run_id: str, prefixes: Sequence[str] = ("val/", "train/")) -> dict[str, list]:
    """Return every logged point of a run by metric, as (step, value) in the order of the steps."""
    keys = [key for key in place.client.get_run(run_id).data.metrics if key.startswith(tuple(prefixes))]
    points = {key: place.client.get_metric_history(run_id, key) for key in sorted(keys)}
    return {key: sorted((point.step, point.value) for point in found) for key, found in points.items()}
