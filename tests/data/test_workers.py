"""Processes that read ahead: deaf to what a scheduler sends to all, and gone when the one that trains is."""

import os
import signal
import subprocess
from multiprocessing import active_children, get_context

import psutil
import pytest
from layouts import CSV_MODALITIES, make_csv

from fusionbench.data.csv import Csv
from fusionbench.data.module import FusionData

PATIENCE = 60  # seconds until a process is called hung
ALL = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    """Return a function that serves a csv's training cases by two workers."""
    path = make_csv(tmp_path_factory.mktemp("csv"), patients=16)
    source = Csv(None, path=str(path), modalities={"labs": CSV_MODALITIES["labs"]})
    data = FusionData(source, {}, 0, batch_size=2, num_workers=2)
    return data.train_dataloader


def in_process(act):
    """Do something in a process and a group of its own, which then ends as Python does; return its exit status."""

    def alone():
        os.setsid()
        act()

    process = get_context("fork").Process(target=alone)
    process.start()
    process.join(PATIENCE)
    hung = process.exitcode is None
    process.kill()
    process.join()
    return "hung" if hung else process.exitcode


def started(loader):
    """Return batches to come, two workers having served one each, and the workers."""
    batches = iter(loader())
    assert len({tuple(next(batches).case_id) for _ in range(2)}) == 2
    return batches, active_children()


def test_a_signal_to_all_processes_of_a_job_is_answered_by_the_one_that_trains(loader, tmp_path):
    def act():
        for number in ALL:
            signal.signal(number, lambda number, _: (tmp_path / f"{number}-{os.getpid()}").touch())
        batches, workers = started(loader)
        for number in ALL:
            command = ["bash", "-c", f"kill -{int(number)} -- -{os.getpgrp()}"]
            subprocess.run(command, start_new_session=True, check=True)
        assert sum(1 for _ in batches) > 2
        assert len(workers) == 2
        assert all(worker.is_alive() for worker in workers)
        assert {path.name for path in tmp_path.iterdir()} == {f"{int(number)}-{os.getpid()}" for number in ALL}

    assert in_process(act) == 0


def test_a_worker_ends_when_its_parent_says_so(loader):
    def act():
        _, workers = started(loader)
        for worker in workers:
            worker.terminate()
            worker.join(PATIENCE / 4)
            assert worker.exitcode == 0

    assert in_process(act) == 0


def test_workers_end_when_their_parent_is_killed(loader, tmp_path):
    def act():
        _, workers = started(loader)
        (tmp_path / "pids").write_text(" ".join(str(worker.pid) for worker in workers))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_process(act) == -signal.SIGKILL
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert len(pids) == 2
    assert not psutil.wait_procs(left, PATIENCE / 2)[1]
