"""``fusionbench export``: one file, verified, of a model's folder or of a run that was cut off."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from program import command, refused
from safetensors.torch import load_file, save_file

from fusionbench.commands import export
from fusionbench.tracking import TrackedRun

STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.ones(2)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text("{}")
    return tmp_path


def test_a_model_becomes_one_file(model: Path) -> None:
    done = command("export", model, "--out", model / "out" / "trained.safetensors")
    assert done.code == 0, done.err
    assert "2 tensors with 8 values" in done.out
    torch.testing.assert_close(load_file(model / "out" / "trained.safetensors"), STATE)
    assert [path.name for path in (model / "out").iterdir()] == ["trained.safetensors"]


def test_mistakes_are_told_in_one_sentence(model: Path) -> None:
    assert "must end in .safetensors" in refused("export", model, "--out", model / "trained.pt")
    told = refused("export", model, "--out", model / "x.safetensors", "--with-base", "--checkpoint", "last")
    assert "leave --checkpoint out" in told


def test_a_run_that_was_cut_off_gives_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrackedRun(SimpleNamespace(folder=tmp_path, client=None), "abc")
    folder = run.folder / "checkpoints"
    folder.mkdir(parents=True)
    for number, name in enumerate(("best", "last")):
        state = {f"strategy.{key}": value + number for key, value in STATE.items()} | {
            "criterion.weight": torch.ones(1)
        }
        torch.save({"state_dict": state}, folder / f"{name}.ckpt")
    monkeypatch.setattr(export, "find", lambda options: run)
    for number, name in enumerate(("best", "last")):
        out = tmp_path / f"{name}.safetensors"
        assert command("export", "abc", "--out", out, "--checkpoint", name).code == 0
        torch.testing.assert_close(load_file(out), {key: value + number for key, value in STATE.items()})


def test_tied_tensors_are_written_for_each_name_and_a_bad_disk_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    value = torch.arange(4.0)
    export.write(out, {"a": value, "b": value, "c": value.reshape(2, 2).T})
    torch.testing.assert_close(load_file(out), {"a": value, "b": value, "c": value.reshape(2, 2).T.contiguous()})
    monkeypatch.setattr(export, "_apart", lambda state: {name: value + 1 for name, value in state.items()})
    with pytest.raises(export.UserError, match="reads back otherwise"):
        export.write(out, {"a": value})
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    assert torch.equal(load_file(out)["a"], value)
