"""Networks of shapes alone are those that are built with weights, and open no file of weights."""

import psutil
import pytest
import torch
from contract.trials import up_to_three
from folders import write_llama_11b, write_without_weights
from tiny import options_of, pool_for

from fusionbench import registry
from fusionbench.adapt.frozen import Frozen
from fusionbench.adapt.views import EncoderPool
from fusionbench.layers.frozen import parameter_counts
from fusionbench.layers.skeleton import is_skeleton, skeleton
from fusionbench.types import ModalitySpec

TRIALS = [(name, "mor") for name in registry.names("fusion")]
TRIALS += [("llama_early", method) for method in registry.names("adapt")]


def described(module):
    """Return shape and type of every parameter, and whether it is trained."""
    return {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in module.named_parameters()}


def built(name, method):
    made = up_to_three(name)
    strategy = registry.describe("fusion", name).load()
    return strategy(made, pool_for(name, made, method), **options_of(name, made, {}))


@pytest.mark.parametrize(("name", "method"), TRIALS)
def test_it_is_the_network_in_shapes_alone(name, method):
    with skeleton():
        bare = built(name, method)
    assert described(bare) == described(built(name, method))
    assert {t.device.type for t in (*bare.parameters(), *bare.buffers())} == {"meta"}


@pytest.mark.parametrize("name", ["hf_text", "hf_patches", "llama", "llama_vision", "mllama"])
def test_no_file_of_weights_is_opened(name, tmp_path):
    """Neither one that is damaged nor one that is not there matters, and that of timm's model is a folder's."""
    options = write_without_weights(tmp_path, name)
    kind = registry.describe("encoder", name).load()
    spec = ModalitySpec("image", size=32) if name == "hf_patches" else ModalitySpec("text")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with skeleton():
        made = EncoderPool({"x": spec}, {"x": (kind, options)}, Frozen()).views({"x": "x"})
    assert parameter_counts(made)["total"] > 0
    with pytest.raises(Exception, match=r"could not be read|no weights could be read"):
        kind(spec, **options)


@pytest.mark.parametrize("name", ["timm_vit", "timm_cnn", "unet"])
def test_a_damaged_file_of_a_picture_model_is_not_opened(name, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"no weights")
    own = {"timm_vit": {"model": "test_vit"}, "timm_cnn": {"model": "test_resnet"}}
    options = own.get(name, {"backbone": "tu-test_efficientnet"})
    kind = registry.describe("encoder", name).load()
    with skeleton():
        kind(ModalitySpec("image", size=32), weights=str(path), **options)
        kind(ModalitySpec("image", size=32), weights="hub", **options)
    with pytest.raises(Exception, match="could not be read"):
        kind(ModalitySpec("image", size=32), weights=str(path), **options)


def test_llama_3_2_11b_vision_takes_no_memory(tmp_path):
    kind = registry.describe("encoder", "mllama").load()
    before = psutil.Process().memory_info().rss
    with skeleton():
        made = kind(ModalitySpec("text"), weights=str(write_llama_11b(tmp_path)), dtype="bfloat16")
    assert parameter_counts(made)["total"] == 10_670_220_835
    assert psutil.Process().memory_info().rss - before < 2e9


def test_it_ends_with_its_context():
    with skeleton(), skeleton():
        assert is_skeleton()
    assert not is_skeleton()
    assert torch.zeros(1).device.type == "cpu"
