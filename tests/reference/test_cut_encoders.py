"""Encoders cut in three against the libraries' own forward passes, and what padding may not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from tiny import BERT, encoder_node, perturb
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from fusionbench.encoders.base import Encoder
from fusionbench.encoders.hf_text import HFText
from fusionbench.encoders.timm_cnn import TimmCNN
from fusionbench.encoders.timm_vit import TimmViT
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec


def vit(model: str = "test_vit", size: int = 32, checkpointing: bool = False) -> TimmViT:
    """Return a tiny ViT whose weights are noise throughout."""
    spec = ModalitySpec("image", size=size)
    return perturb(TimmViT(spec, model=model, weights="random", checkpointing=checkpointing)).eval()


def whole(encoder: Encoder, inputs: Tensor) -> Tensor:
    """Run the three parts and return all tokens, (B, N, D)."""
    return encoder.encode(encoder.embed(inputs)).values


def timm_twin(encoder: TimmViT, model: str) -> VisionTransformer:
    """Return timm's own model with the encoder's weights."""
    twin = timm.create_model(model, pretrained=False, dynamic_img_size=True, num_classes=0)
    own = next(m for m in encoder.modules() if isinstance(m, VisionTransformer))
    twin.load_state_dict(own.state_dict())
    return twin.eval()


@pytest.mark.parametrize(
    ("model", "size"),
    [("test_vit", 160), ("test_vit", 64), ("vit_xsmall_patch16_clip_224", 64), ("vit_small_patch14_reg4_dinov2", 56)],
    ids=["own size", "other size", "CLIP: norm before the blocks", "DINOv2: registers"],
)
def test_a_cut_vit_equals_forward_features_bit_for_bit(model: str, size: int) -> None:
    encoder = vit(model)
    pictures = torch.randn(2, 3, size, size)
    wanted = timm_twin(encoder, model).forward_features(pictures)
    tokens = encoder.encode(encoder.embed(pictures))
    assert tokens.values.shape == wanted.shape
    assert torch.equal(encoder.pool(tokens), wanted[:, 0])


def test_layers_can_be_run_in_parts() -> None:
    encoder = vit()
    tokens = encoder.embed(torch.randn(2, 3, 32, 32))
    parts = encoder.encode(encoder.encode(tokens, 0, 2), 2)
    assert torch.equal(parts.values, encoder.encode(tokens).values)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (33, 47), (17, 100)])
def test_an_odd_picture_is_padded_at_right_and_bottom(height: int, width: int) -> None:
    encoder = vit()
    picture = torch.randn(2, 3, height, width)
    padded = F.pad(picture, (0, -width % 16, 0, -height % 16))
    assert torch.equal(whole(encoder, picture), whole(encoder, padded))


def test_positions_follow_the_grid_of_the_picture() -> None:
    encoder = vit()
    assert whole(encoder, torch.randn(1, 3, 64, 96)).shape[1] == 1 + 4 * 6
    twin = timm_twin(encoder, "test_vit")
    picture = torch.randn(2, 3, 64, 96)
    wanted = twin.forward_features(picture)[:, 0]
    torch.testing.assert_close(encoder.pool(encoder.encode(encoder.embed(picture))), wanted)


def test_checkpointing_changes_neither_outputs_nor_gradients() -> None:
    plain, saving = vit().train(), vit(checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    pictures = torch.randn(2, 3, 32, 32)
    outputs = []
    for encoder in (plain, saving):
        outputs.append(encoder.pool(encoder.encode(encoder.embed(pictures))))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, n=name: f"{n}: {text}")


FAMILIES = {
    "bert": BERT,
    "roberta": {**BERT, "model_type": "roberta", "pad_token_id": 1},
    "electra": {**BERT, "model_type": "electra", "embedding_size": 16},
    "distilbert": {
        "model_type": "distilbert",
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 64,
        "vocab_size": 100,
        "max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_text_encoder_equals_transformers(family: str) -> None:
    config = FAMILIES[family]
    encoder = perturb(HFText(ModalitySpec("text"), weights="random", config=config)).eval()
    twin = AutoModel.from_config(AutoConfig.for_model(**config)).eval()
    own = next(m for m in encoder.children() if isinstance(m, type(twin)))
    twin.load_state_dict(own.state_dict(), strict=False)
    ids = torch.randint(2, 100, (3, 9))
    mask = torch.arange(9) < torch.tensor([[9], [5], [7]])
    ids[~mask] = encoder.pad_id
    wanted = twin(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(whole(encoder, ids)[mask], wanted[mask], rtol=1e-5, atol=1e-5)
    assert all(len(encoder.linear_sites()[site]) == 2 for site in ("fc1", "fc2", "q", "k", "v", "proj"))


def test_text_weights_with_a_hole_are_refused(tmp_path: Path) -> None:
    net = AutoModel.from_config(AutoConfig.for_model(**BERT))
    state = {k: v for k, v in net.state_dict().items() if "layer.1.output.dense" not in k}
    net.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match="lack"):
        HFText(ModalitySpec("text"), weights=str(tmp_path))


def test_text_weights_from_a_folder_are_those_of_the_folder(tmp_path: Path) -> None:
    net = AutoModel.from_config(AutoConfig.for_model(**BERT)).eval()
    net.save_pretrained(tmp_path)
    encoder = HFText(ModalitySpec("text"), weights=str(tmp_path)).eval()
    ids = torch.randint(1, 100, (2, 6))
    torch.testing.assert_close(whole(encoder, ids), net(input_ids=ids).last_hidden_state)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_padding_of_a_text_changes_nothing(pool: str) -> None:
    kind, options = encoder_node("hf_text")
    encoder = perturb(kind(ModalitySpec("text"), **options, pool=pool)).eval()
    short = torch.randint(1, 100, (2, 6))
    long = F.pad(short, (0, 10))
    a, b = (encoder.pool(encoder.encode(encoder.embed(ids))) for ids in (short, long))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_cnn_equals_timms_pooled_features() -> None:
    encoder = TimmCNN(ModalitySpec("image", size=64), model="test_resnet", weights="random").eval()
    twin = timm.create_model("test_resnet", pretrained=False, num_classes=0).eval()
    own = {k.split(".", 1)[1]: v for k, v in encoder.state_dict().items()}
    twin.load_state_dict({k: v for k, v in own.items() if k in twin.state_dict()})
    pictures = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder.pool(encoder.encode(encoder.embed(pictures))), twin(pictures))


def test_weights_from_a_file_are_those_of_the_file(tmp_path: Path) -> None:
    twin = timm.create_model("test_vit", pretrained=False)
    torch.save(twin.state_dict(), tmp_path / "vit.pth")
    encoder = TimmViT(ModalitySpec("image"), model="test_vit", weights=str(tmp_path / "vit.pth")).eval()
    pictures = torch.randn(1, 3, 160, 160)
    wanted = twin.eval().forward_features(pictures)[:, 0]
    assert torch.equal(encoder.pool(encoder.encode(encoder.embed(pictures))), wanted)
