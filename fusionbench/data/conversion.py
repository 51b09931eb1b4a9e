"""Turn weights as a wheel ships them into ``.safetensors`` files with the names of timm or transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import timm
import torch
from onnx import numpy_helper
from safetensors.torch import save
from torch import Tensor

from fusionbench.errors import UserError

_DINOV2_BLOCK = {
    "attn.proj": "attention.output.dense",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def _dinov2_from_onnx(raw: Path, result: Path, source: str) -> None:
    """Rename the graph's weights to timm's ``vit_small_patch14_dinov2``, at its own grid of 37 × 37 positions."""
    graph = onnx.load(str(raw)).graph
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    old = {name.removeprefix("backbone."): value for name, value in values.items() if name.startswith("backbone.")}
    for node in graph.node:
        # The export folds a linear layer's weight, transposed, into an anonymous operand of its product.
        folded = [name for name in node.input if name.startswith("onnx::") and name in values]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and folded:
            layer = node.name.removeprefix("/backbone/").rsplit("/", 1)[0].replace("/", ".")
            old[f"{layer}.weight"] = values[folded[0]].T
    cls = next(value for name, value in values.items() if name.startswith("onnx::Concat"))
    grid = next(v for name, v in values.items() if name.startswith("onnx::Reshape") and v.shape == (1, 37 * 37, 384))
    _save(_dinov2_to_timm(old) | {"pos_embed": torch.cat([cls, grid], 1)}, result, source)


def _dinov2_to_timm(old: dict[str, Tensor]) -> dict[str, Tensor]:
    new = {"cls_token": old["embeddings.cls_token"]}
    for kind in ("weight", "bias"):
        new[f"patch_embed.proj.{kind}"] = old[f"embeddings.patch_embeddings.projection.{kind}"]
        new[f"norm.{kind}"] = old[f"layernorm.{kind}"]
    for i in range(12):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            parts = [old[f"{layer}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            new[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
            for ours, theirs in _DINOV2_BLOCK.items():
                new[f"{block}.{ours}.{kind}"] = old[f"{layer}.{theirs}.{kind}"]
        for number in (1, 2):
            new[f"{block}.ls{number}.gamma"] = old[f"{layer}.layer_scale{number}.lambda1"]
    return new


def _efficientnet_to_timm(raw: Path, result: Path, source: str) -> None:
    """Rename by position: the tensors come in the order of timm's ``efficientnet_lite0``."""
    old = torch.load(raw, map_location="cpu", weights_only=True)
    wanted = timm.create_model("efficientnet_lite0", pretrained=False).state_dict()
    if [tuple(value.shape) for value in wanted.values()] != [tuple(value.shape) for value in old.values()]:
        raise UserError(
            "efficientnet_lite0 of this timm differs from the asset's; install the timm that pyproject names"
        )
    _save(dict(zip(wanted, old.values(), strict=True)), result, source)


def _smollm2_from_gguf(raw: Path, result: Path, source: str) -> None:
    """Write the folder of a transformers model: 4- and 8-bit weights unpacked to float16, config and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    lying: dict[str, Any] = {"gguf_file": raw.name, "local_files_only": True}
    # Unpacked in float32, the type the blocks' scales are meant for, and rounded once.
    packing = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(raw.parent), **lying, quantization_config=packing, dtype=torch.float32
    )
    settings = model.config
    settings.architectures, settings.dtype = [type(model).__name__], torch.float16
    settings.save_pretrained(result)
    AutoTokenizer.from_pretrained(str(raw.parent), **lying).save_pretrained(result)
    weights = {name: value.half() for name, value in model.state_dict().items()}
    if settings.tie_word_embeddings:
        del weights["lm_head.weight"]
    _save(weights, result / "model.safetensors", source)


def _save(weights: dict[str, Tensor], result: Path, source: str) -> None:
    # Not save_file, which makes files that only their owner can read. The format is what transformers asks for.
    state = {name: value.contiguous() for name, value in weights.items()}
    result.write_bytes(save(state, {"format": "pt", "source": source}))


CONVERTERS = {
    "dinov2_small": _dinov2_from_onnx,
    "efficientnet_lite0": _efficientnet_to_timm,
    "smollm2": _smollm2_from_gguf,
}
