"""Configs large enough for their memory to be measured: an EI, a LLaMA-II and an MDF, with random weights."""

from __future__ import annotations

from pathlib import Path

from layouts import CSV_MODALITIES, make_csv
from program import llama, write_config

DECODER = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 1024}


def write_planned(folder: Path) -> dict[str, Path]:
    """Write the data and the configs, and return these by name."""
    path = make_csv(folder, patients=16)
    shared = {
        "trainer": {"max_epochs": 2, "progress": False, "accelerator": "cpu"},
        "tracking": {"folder": str(folder / "runs")},
    }
    data = {"name": "csv", "path": str(path), "cache": str(folder / "cache"), "batch_size": 4}
    photo, notes = ({name: CSV_MODALITIES[name] for name in names} for names in (("photo", "scan"), ("photo", "notes")))
    decoder = llama(folder / "tokenizer")
    decoder = {**decoder, "config": {**decoder["config"], **DECODER}}
    seeing = {key: value for key, value in decoder.items() if key != "patch"} | {"name": "llama_vision"}
    small = {"name": "timm_vit", "model": "vit_small_patch16_224", "weights": "random"}
    trees = {
        "ei": {
            "data": {**data, "modalities": photo, "size": 224},
            "encoder": small,
            "adapt": {"name": "mor"},
            "fusion": {"name": "early_intervention"},
        },
        "llama2": {
            "data": {**data, "batch_size": 16, "modalities": notes, "size": 224},
            "encoder": {"photo": {**decoder, "patch": 16}, "notes": decoder},
            "adapt": {"name": "lora", "sites": ["q", "v"]},
            "fusion": {"name": "llama_early", "cross": [6, 7]},
            "optimizer": {"name": "adamw", "lr": 0.001},
        },
        "mdf": {
            "data": {**data, "modalities": notes, "size": 224},
            "encoder": {
                "photo": {"name": "unet", "backbone": "resnet34", "weights": "random"},
                "notes": {**seeing, "vision": {key: small[key] for key in ("model", "weights")}},
            },
            "adapt": {"name": "peft_lora", "sites": ["q", "v"]},
            "fusion": {"name": "mdf", "grid": 4},
            "optimizer": {"name": "adamw", "lr": 0.001},
        },
    }
    return {name: write_config(folder / f"{name}.yaml", {**tree, **shared}) for name, tree in trees.items()}
