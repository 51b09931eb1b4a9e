"""Folders of models without any weights, from which shapes alone can be built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from program import tokenizer
from tiny import ENCODERS
from transformers import CONFIG_MAPPING, MllamaConfig


def write_llama_11b(folder: Path) -> Path:
    """Write the config of Llama 3.2 11B Vision (560 pixels, 10,670,220,835 parameters) and a tokenizer, no weights."""
    seen = {"intermediate_layers_indices": [3, 7, 15, 23, 30], "vision_output_dim": 7680, "image_size": 560}
    config = MllamaConfig(vision_config=seen)
    config.text_config.pad_token_id = 0
    return _write(folder, config)


def write_without_weights(folder: Path, encoder: str) -> dict[str, Any]:
    """Write the config of a tiny encoder and a tokenizer, and return the encoder's options that read them."""
    own = {key: value for key, value in ENCODERS[encoder].items() if key != "config"}
    tree = dict(ENCODERS[encoder]["config"])
    _write(folder, CONFIG_MAPPING[tree.pop("model_type", "mllama")](**tree))
    return {**own, "weights": str(folder)}


def _write(folder: Path, config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str), encoding="utf-8")
    for path in tokenizer(folder / ".words").iterdir():
        shutil.copy(path, folder)
    return folder
