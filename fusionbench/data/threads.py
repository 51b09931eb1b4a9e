"""Read many files at once, with a progress bar when it takes long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

_SHOW_PROGRESS_AFTER = 2.0  # seconds
T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Collection[T], label: str) -> list[R]:
    """Return ``function`` of every item, in order; a bar appears on stderr when it takes longer than two seconds."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        return list(_with_progress(pool.map(function, items), len(items), label))
    finally:
        pool.shutdown(cancel_futures=True)


def _with_progress(results: Iterable[R], total: int, label: str) -> Iterator[R]:
    bar = Progress(console=Console(stderr=True))
    task, started = bar.add_task(label, total=total), time.monotonic()
    try:
        for result in results:
            yield result
            bar.advance(task)
            if time.monotonic() - started > _SHOW_PROGRESS_AFTER:
                bar.start()
    finally:
        if bar.live.is_started:
            bar.stop()
