"""Processes that are started together, end together, and the first of which to fail says why."""

import os
import signal
import time

import pytest

from fusionbench import launch, world
from fusionbench.commands import fit
from fusionbench.errors import UserError
from fusionbench.sections import TrainerOptions

LONG = 600  # seconds that no process is let alone for


def told(word):
    """Join, hear what rank 0 says, and return it with the place among the others."""
    with world.joined("cpu") as joined:
        heard = joined.broadcast([word, os.getpid()] if joined.leads else None)
        return heard[0], joined.rank, joined.size, joined.leads


def failing(rank, how):
    """End one process; the others wait for it."""
    with world.joined("cpu") as joined:
        joined.broadcast(None)
        if joined.rank == rank:
            if how == "mistake":
                raise UserError("the third case is no picture")
            if how == "fault":
                raise ZeroDivisionError("nothing is left")
            os.kill(os.getpid(), getattr(signal, how))
        time.sleep(LONG)


def test_all_hear_what_rank_0_says_and_its_result_is_returned():
    assert launch.on_each(2, told, "hello") == ("hello", 0, 2, True)


@pytest.mark.parametrize("rank", [1])
def test_a_users_mistake_in_any_process_is_told_as_one_and_ends_all(rank):
    with pytest.raises(UserError, match=r"^the third case is no picture$"):
        launch.on_each(2, failing, rank, "mistake")


def test_another_error_is_told_with_the_process_and_its_traceback():
    with pytest.raises(launch.RankError, match=r"process 1 of 2 failed: ZeroDivisionError: nothing is left") as error:
        launch.on_each(2, failing, 1, "fault")
    assert "in failing" in str(error.value)


def test_a_killed_process_ends_the_others_and_is_named():
    with pytest.raises(launch.RankError, match=r"process 1 of 2 .*SIGKILL"):
        launch.on_each(2, failing, 1, "SIGKILL")


def unlucky(rank):
    """End both processes by what the network would say."""
    with world.joined("cpu"):
        raise ConnectionError(f"NCCL error in rank {rank}: Duplicate GPU detected")


def test_where_all_tell_of_the_network_the_first_is_shown():
    with pytest.raises(launch.RankError, match=r"of 2 failed: ConnectionError: NCCL error .*Duplicate GPU") as error:
        launch.on_each(2, unlucky, 0)
    assert "in unlucky" in str(error.value)


def test_other_processes_than_the_config_has_devices_are_refused(monkeypatch):
    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"2 processes were started, 1 on this node, but trainer\.devices is 2"):
        fit._check_size(TrainerOptions(devices=2))


def test_a_process_started_alone_is_a_world_of_one(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with world.joined("cpu") as joined:
        assert joined.leads
        assert joined.broadcast("own") == "own"


def test_a_part_of_torchruns_environment_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=r"RANK, but not all of"):
        world.current()
