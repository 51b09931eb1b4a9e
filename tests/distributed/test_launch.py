"""Processes that are started together, end together, and the first of which to fail says why."""

import os
import signal
import sys
import time
from multiprocessing import active_children
from unittest import mock

import psutil
import pytest
import torch
import torch.distributed as dist

from fusionbench import __main__, world
from fusionbench.commands import fit
from fusionbench.errors import UserError
from fusionbench.launch import processes
from fusionbench.launch.failures import RankError
from fusionbench.launch.processes import on_each
from fusionbench.sections import TrainerOptions
from fusionbench.signals import terminable, unheard

LONG = 600  # seconds that no process is let alone for
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error"


def told(word):
    """Join, hear what rank 0 says, and return it with the place among the others."""
    with world.joined("cpu") as joined:
        heard = joined.broadcast([word, os.getpid()] if joined.leads else None)
        return heard[0], joined.rank, joined.size, joined.leads


def failing(rank, how, others="sleep"):
    """End one process; the others sleep, compute, or wait in a collective until they hear of its end."""
    with world.joined("cpu") as joined:
        joined.broadcast(None)
        if joined.rank == rank:
            fail(how)
        if others == "meet":
            dist.all_reduce(torch.ones(3))
        until = time.monotonic() + LONG
        while time.monotonic() < until:
            time.sleep(LONG) if others == "sleep" else torch.ones(64, 64).mm(torch.ones(64, 64))


def fail(how):
    if how == "mistake":
        raise UserError("the third case is no picture")
    if how == "fault":
        raise ZeroDivisionError("nothing is left")
    if how == "network":
        raise RuntimeError(NCCL)
    if how == "disk":
        raise OSError(28, "No space left on device")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(LONG)


def told_to_end():
    """Let rank 0 be killed while the other takes SIGTERM as Lightning does: by the end of its process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failing(0, "SIGKILL", "sleep")


def test_all_hear_what_rank_0_says_and_its_result_is_returned():
    assert on_each(2, told, "hello") == ("hello", 0, 2, True)


def test_a_users_mistake_in_any_process_is_told_as_one_and_ends_all():
    with pytest.raises(UserError, match=r"^the third case is no picture$"):
        on_each(2, failing, 1, "mistake")


def test_another_error_is_told_with_the_process_and_its_traceback():
    with pytest.raises(RankError, match=r"^process 1 of 2 failed: ZeroDivisionError: nothing is left") as error:
        on_each(2, failing, 1, "fault", "meet")
    assert "in failing" in error.value.trace
    assert "ZeroDivisionError" in error.value.kinds


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("others", ["meet", "compute"])
def test_a_killed_process_ends_the_others_and_is_named(rank, others):
    said = rf"^process {rank} of 2 was killed by SIGKILL, perhaps because the machine ran out of memory"
    with pytest.raises(RankError, match=said) as error:
        on_each(2, failing, rank, "SIGKILL", others)
    assert error.value.kinds == ()


def test_a_process_that_was_told_to_end_is_not_the_cause():
    with pytest.raises(RankError, match=r"^process 0 of 2 was killed by SIGKILL"):
        on_each(2, told_to_end)


def test_a_process_that_somebody_else_ends_is_named():
    with pytest.raises(RankError, match=r"^process 1 of 2 was killed by SIGTERM"):
        on_each(2, failing, 1, "SIGTERM", "meet")


def test_a_process_that_ends_without_a_word_is_named():
    with pytest.raises(RankError, match=r"^process 1 of 2 ended with status 3"):
        on_each(2, failing, 1, "exit", "meet")


def test_an_error_of_the_network_in_one_process_is_its_own_while_the_others_compute():
    with pytest.raises(RankError, match=r"^process 1 of 2 failed: RuntimeError: NCCL error in") as error:
        on_each(2, failing, 1, "network", "compute")
    assert "in fail" in error.value.trace


def unlucky(rank):
    """End both processes by what the network would say."""
    with world.joined("cpu"):
        raise ConnectionError(f"NCCL error in rank {rank}: Duplicate GPU detected")


def test_where_all_tell_of_the_network_the_first_is_shown():
    with pytest.raises(RankError, match=r"of 2 failed: ConnectionError: NCCL error .*Duplicate GPU") as error:
        on_each(2, unlucky, 0)
    assert "in unlucky" in error.value.trace


def handlers():
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    return [signal.getsignal(kind) for kind in kinds]


def test_nothing_is_heard_while_the_end_is_noted():
    before = handlers()
    with unheard():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_the_callers_signals_and_environment_stay_its_own():
    before = handlers(), dict(os.environ)
    on_each(2, told, "hello")
    assert (handlers(), dict(os.environ)) == before


def interrupt(flag, number=signal.SIGINT):
    """Let rank 0 press Ctrl-C in the process that launched it, or send that a signal, and note if it hears of it."""
    try:
        if int(os.environ["RANK"]) == 0:
            os.kill(os.getppid(), number)
        time.sleep(LONG)
    except KeyboardInterrupt:
        flag.with_name(os.environ["RANK"]).touch()
        raise


def test_ctrl_c_ends_all_processes_and_stays_ctrl_c(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        on_each(2, interrupt, tmp_path / "flag")
    assert (tmp_path / "0").exists()
    assert not active_children()


def test_what_a_script_starts_in_the_background_ends_as_soon(tmp_path):
    """A shell that does not talk to a person lets such processes ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with mock.patch.object(processes, "_SHUTDOWN", LONG), terminable(), pytest.raises(KeyboardInterrupt):
            on_each(2, interrupt, tmp_path / "flag", signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "0").exists()


def threads():
    with world.joined("cpu") as joined:
        found = [None] * joined.size
        dist.all_gather_object(found, torch.get_num_threads())
        return found


def test_the_cores_are_shared_out_among_the_processes(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with mock.patch.object(processes, "cores", return_value=2):
        assert on_each(2, threads) == [1, 1]


def test_the_users_number_of_threads_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with mock.patch.object(processes, "cores", return_value=2):
        assert on_each(2, threads) == [2, 2]


def listening(launcher):
    """Return where the launcher and all of its processes listen, once they have spoken with each other."""
    with world.joined("cpu") as joined:
        dist.all_reduce(torch.ones(2))
        joined.broadcast("word")
        tree = [psutil.Process(launcher), *psutil.Process(launcher).children(recursive=True)]
        found = [c.laddr.ip for p in tree for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        dist.barrier()
        return found


def test_nothing_of_a_run_on_one_machine_is_open_to_the_network(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert set(on_each(2, listening, os.getpid())) == {"127.0.0.1"}


def deaf():
    """Meet what SLURM sends to all processes before it takes the node away."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    return "here"


def test_a_schedulers_warning_is_left_to_the_process_that_launched():
    assert on_each(2, deaf) == "here"


def refused_by(how):
    """Return the status of a command whose second process fails, as ``fit`` would end."""

    def run(options):
        on_each(2, failing, 1, how, "meet")

    with mock.patch.object(fit, "run", run):
        return __main__.main(["fit", "--config", "x.yaml"])


@pytest.mark.parametrize(
    ("how", "said"),
    [("disk", "process 1 of 2 failed: OSError: [Errno 28] No space left"), ("SIGKILL", "process 1 of 2 was killed by")],
)
def test_one_sentence_tells_of_a_full_disk_and_of_a_kill(capfd, how, said):
    assert refused_by(how) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")


def test_a_fault_shows_the_traceback_of_its_own_process_once(capfd):
    assert refused_by("fault") == 1
    shown = capfd.readouterr().err
    assert shown.count("Traceback") == 1
    assert "in failing" in shown
    assert shown.endswith("error: process 1 of 2 failed: ZeroDivisionError: nothing is left\n")


def test_a_follower_tells_of_another_processs_end_in_a_line(monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert __main__._tell(RuntimeError("[tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: process 1 of 2 has lost another, which says why: [tcp/pair.cc:547]")
    with pytest.raises(ZeroDivisionError):
        __main__._tell(ZeroDivisionError("own"))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError):
        __main__._tell(RuntimeError("Connection closed by peer"))


def test_other_processes_than_the_config_has_devices_are_refused():
    started = world.World(rank=0, size=2, local_rank=0, local_size=1)
    with pytest.raises(UserError, match=r"2 processes were started, 1 on this node, but trainer\.devices is 2"):
        fit._check_size(TrainerOptions(devices=2), started)


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
