"""Which of several failures is told, by what processes have noted and how they ended."""

import os
import signal

import pytest

from fusionbench.launch import failures

ABORT, KILL = -int(signal.SIGABRT), -int(signal.SIGKILL)
CLOSED = RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(
    ("noted", "ended", "said"),
    [
        ([(1, CLOSED)], {0: ABORT, 1: 1}, "process 0 of 2 was killed by SIGABRT"),
        ([(0, ValueError("odd"))], {0: 1, 1: ABORT}, "process 0 of 2 failed: ValueError: odd"),
        ([(1, CLOSED), (0, ValueError("odd"))], {1: 1, 0: 1}, "process 0 of 2 failed: ValueError: odd"),
        ([(1, ValueError("lost"))], {0: KILL, 1: 1}, "process 0 of 2 was killed by SIGKILL"),
    ],
)
def test_the_cause_is_a_kill_then_what_is_no_echo_then_the_first(tmp_path, noted, ended, said):
    for number, (rank, error) in enumerate(noted):
        failures.note(tmp_path, rank, error)
        os.utime(tmp_path / f"failure{rank}.json", ns=(number, number))
    assert str(failures.cause(tmp_path, 2, ended)).startswith(said)


def test_the_last_words_of_a_killed_process_are_no_warnings_and_short(tmp_path):
    lines = ["so far", "[rank1]:[W1122 reducer.cpp:1529] Warning: find_unused_parameters=True", "x" * 300]
    failures.log(tmp_path, 1).write_text("\n".join(lines))
    told = str(failures.cause(tmp_path, 2, {1: -signal.SIGKILL}))
    assert told.endswith(f"its last words: so far / {'x' * 200}")
    assert "was killed by signal 40" in str(failures.cause(tmp_path, 2, {1: -40}))
