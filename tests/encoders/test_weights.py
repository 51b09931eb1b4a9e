"""Weights by path: what people's checkpoints look like, and what is refused."""

from argparse import Namespace

import pytest
import timm
import torch
from safetensors.torch import save_file

from fusionbench.encoders.timm_cnn import TimmCNN
from fusionbench.encoders.timm_vit import TimmViT
from fusionbench.encoders.weights import weights_path
from fusionbench.errors import UserError
from fusionbench.types import ModalitySpec

SPEC = ModalitySpec("image", 32)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(1)
    return timm.create_model("test_vit", num_classes=0, global_pool="token")


def loaded(path):
    return TimmViT(SPEC, model="test_vit", weights=str(path)).net.state_dict()


def test_safetensors(vit, tmp_path):
    save_file(vit.state_dict(), tmp_path / "w.safetensors")
    torch.testing.assert_close(loaded(tmp_path / "w.safetensors"), vit.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_as_mae_and_retfound_write_it(vit, tmp_path):
    extra = {"decoder_embed.weight": torch.zeros(2, 2), "head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}
    torch.save({"model": {**vit.state_dict(), **extra}, "args": Namespace(lr=1e-3), "epoch": 3}, tmp_path / "w.pth")
    torch.testing.assert_close(loaded(tmp_path / "w.pth"), vit.state_dict(), rtol=0, atol=0)


def test_positions_of_another_grid_are_interpolated(tmp_path):
    larger = timm.create_model("test_vit", num_classes=0, global_pool="token", img_size=224)
    torch.save(larger.state_dict(), tmp_path / "w.pth")
    state = loaded(tmp_path / "w.pth")
    assert state["pos_embed"].shape == (1, 101, 64)
    torch.testing.assert_close(state["blocks.0.attn.qkv.weight"], larger.state_dict()["blocks.0.attn.qkv.weight"])


def test_missing_tensors_are_named(vit, tmp_path):
    state = {k: v for k, v in vit.state_dict().items() if k != "norm.weight"}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"does not fit 'test_vit': 1 tensors are missing \(norm\.weight\)"):
        loaded(tmp_path / "w.pth")


class Code:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"model": Code()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="could not be read as weights"):
        loaded(tmp_path / "w.pth")
    assert "this must not run" not in capsys.readouterr().out


def test_a_cnn_by_path(tmp_path):
    net = timm.create_model("test_resnet", num_classes=0, global_pool="")
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    encoder = TimmCNN(SPEC, model="test_resnet", weights=str(tmp_path / "w.safetensors"))
    torch.testing.assert_close(encoder.net.state_dict(), net.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("weights", ["/no/such/file.pth", "Hub", "asset:dinov2_smal"])
def test_a_typo_is_answered(weights):
    with pytest.raises(UserError, match=r"neither a file nor a folder|unknown asset"):
        weights_path(weights)


def test_a_model_that_is_no_vit():
    with pytest.raises(UserError, match="no plain ViT with a class token"):
        TimmViT(SPEC, model="test_resnet", weights="random")
    with pytest.raises(UserError, match="timm has no model 'vit_smal_patch16_224'; did you mean"):
        TimmViT(SPEC, model="vit_smal_patch16_224", weights="random")


@pytest.mark.parametrize(("kind", "model"), [(TimmViT, "test_vit"), (TimmCNN, "test_resnet")])
def test_a_folder_in_place_of_a_file(kind, model, tmp_path):
    with pytest.raises(UserError, match=r"are a folder, but a model of timm is one file: name a \.safetensors"):
        kind(SPEC, model=model, weights=str(tmp_path))
