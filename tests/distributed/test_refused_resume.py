"""A run that can't be gone on with is refused before it is opened again, so that it stays what it was: cut off."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fusionbench import run as runs
from fusionbench.errors import UserError
from fusionbench.sections import TrainerOptions


class CutOff:
    """A run that was killed in its first phase."""

    phase, run_id = "fit", "abc"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[str] = []

    def lock(self) -> None:
        self.done.append("lock")

    def resume(self) -> None:
        self.done.append("resume")
        raise InterruptedError  # as far as this test goes

    def finish(self, status: str) -> None:
        self.done.append(status)


@pytest.mark.parametrize(
    ("strategy", "whole", "done", "error", "sentence"),
    [
        ("zero3", True, ["lock"], UserError, "was written without ZeRO"),
        ("auto", True, ["lock", "resume"], InterruptedError, None),
        ("auto", False, ["lock"], UserError, "could not be read: .* must be removed first$"),
    ],
)
def test_a_refused_run_is_not_opened_again(
    strategy: str,
    whole: bool,
    done: list[str],
    error: type[Exception],
    sentence: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    torch.save({"state_dict": {"weight": torch.ones(1000)}}, last)
    if not whole:
        last.write_bytes(last.read_bytes()[:2000])
    run = CutOff(tmp_path)
    monkeypatch.setattr(runs, "fingerprint", lambda *arguments: "identity")
    session = SimpleNamespace(store=SimpleNamespace(find_unfinished=lambda identity: run), resume=True, say=print)
    config = SimpleNamespace(trainer=TrainerOptions(strategy=strategy))
    with pytest.raises(error, match=sentence):
        runs._fit_one(session, config, None, runs.Alone(), "")
    assert run.done == done
