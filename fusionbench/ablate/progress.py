"""What a person sees of a sweep: one bar over its runs, and lines above it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fusionbench.ablate.job import Job


class Bar:
    """A progress bar over runs.

    Args:
        console: Where it is drawn.
        total: Number of runs.
        trace: Whether to show where in the code a run failed.
    """

    def __init__(self, console: Console, total: int, trace: bool = False) -> None:
        self.console, self.trace = console, trace
        self._running: dict[int, str] = {}
        self._said: set[str] = set()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("starting", total=total)

    def __enter__(self) -> Bar:
        """Draw it."""
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave it as it stands."""
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar; what many runs say of the same data is said once."""
        if text not in self._said:
            self._said.add(text)
            self._bar.console.print(text, markup=False)

    def start(self, job: Job) -> None:
        """Show that a run goes on."""
        self._running[id(job)] = job.name
        self._show()

    def end(self, jobs: Sequence[Job], trace: str) -> None:
        """Count a run, and say why it failed if it did."""
        self._running.pop(id(jobs[0]), None)
        if jobs[0].state == "failed":
            self.say(f"{jobs[0].name} failed: {jobs[0].told}")
        if trace and self.trace:
            self.say(trace)
        self._bar.advance(self._task)
        self._show()

    def _show(self) -> None:
        self._bar.update(self._task, description=escape(", ".join(self._running.values())) or "waiting")
