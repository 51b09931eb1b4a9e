"""One run of a table: what it is, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fusionbench.config import Config
from fusionbench.errors import UserError, public_reason
from fusionbench.report.ablation_table import Cell

State = Literal["finished", "to resume", "to do", "failed", "skipped", "left out"]
_STATUS: dict[State, Literal["finished", "failed", "skipped", "missing"]] = {
    "finished": "finished",
    "failed": "failed",
    "skipped": "skipped",
    "left out": "missing",
    "to do": "missing",
    "to resume": "missing",
}


@dataclass
class Job:
    """A run that a table wants, or a stage-1 run that such a run starts from.

    Attributes:
        row: The table's row; for stage 1 ``stage 1: <modality>``, for a text beside a fusion ``text only: <modality>``.
        column: The table's column.
        seed: The seed.
        config: What is run.
        stage_one: Whether it is a stage-1 run or a text alone, which is no cell of the table.
        wanted: Whether this command is asked to run it.
        needs: The identity of the stage-1 run of each modality that it starts from.
        texts: The identity of the run of each text alone that it is held against.
        fingerprint: Its identity, once that can be known: after its stage-1 runs.
        state: How far it has come.
        reason: Why there is no result, in words that may be written to files and trackers.
        told: The same as it is told on the console, which may name cases and files.
        run_id: The MLflow run with the result, or the one that was cut off.
        seconds: Estimate of the time it takes; None: nothing like it was measured.
    """

    row: str
    column: str
    seed: int
    config: Config | None
    stage_one: bool = False
    wanted: bool = True
    needs: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    state: State = "to do"
    reason: str = ""
    told: str = ""
    run_id: str = ""
    seconds: float | None = None

    @property
    def name(self) -> str:
        """Return what a person calls it."""
        return f"{self.row} · {self.column} · seed {self.seed}"

    @property
    def open(self) -> bool:
        """Whether it is still to be run."""
        return self.wanted and self.state in ("to do", "to resume")

    def end(self, state: State, reason: str = "", told: str = "") -> None:
        """Note how it ended; without ``told`` the console hears the reason."""
        self.state, self.reason, self.told = state, reason, told or reason

    def refuse(self, error: UserError) -> None:
        """Note a user's mistake as its failure."""
        self.end("failed", public_reason(error), str(error))

    def cell(self) -> Cell:
        """Return the record that results are written from."""
        run_id = self.run_id if self.state in ("finished", "failed") else ""
        reason = "not run" if self.state in ("to do", "to resume") else self.reason
        return Cell(self.row, self.column, self.seed, _STATUS[self.state], reason, run_id, self.fingerprint)
