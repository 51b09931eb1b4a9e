"""A run that can't be gone on with is refused before it is opened again, so that it stays what it was: cut off."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

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
    ("strategy", "done", "error"), [("zero3", ["lock"], UserError), ("auto", ["lock", "resume"], InterruptedError)]
)
def test_a_refused_run_is_not_opened_again(
    strategy: str, done: list[str], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()  # a plain file, which ZeRO can't go on from
    run = CutOff(tmp_path)
    monkeypatch.setattr(runs, "fingerprint", lambda *arguments: "identity")
    session = SimpleNamespace(store=SimpleNamespace(find_unfinished=lambda identity: run), resume=True, say=print)
    config = SimpleNamespace(trainer=TrainerOptions(strategy=strategy))
    with pytest.raises(error):
        runs._fit_one(session, config, None, runs.Alone(), "")
    assert run.done == done
