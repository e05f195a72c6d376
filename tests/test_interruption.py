"""Repeats of a signal are one, as launchers forward what a process got already."""

import os
import signal
import time

import pytest

from chanprune.processes import interruption
from chanprune.processes.errors import Interrupted
from chanprune.processes.interruption import Interruption


def ended(first, gap, *, leave):
    """Send a process a signal, and SIGTERM twice after it; return its exit code and what it said.

    Args:
        first: The first signal.
        gap: Seconds between them; None: as soon as it has noticed the first.
        leave: Whether it leaves `Interruption` before the others, and goes on with other things.
    """
    said, told, sent = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.dup2(said[1], 2)
        code = 1
        try:
            with Interruption() as asked:
                os.write(told[1], b"x")
                while asked.requested is None:
                    time.sleep(0.01)
                os.write(told[1], b"x")
                if not leave:
                    os.read(sent[0], 1)
                asked.stop_if_requested()
        except Interrupted as stopped:
            if leave:
                os.read(sent[0], 1)
            code = stopped.exit_code
        finally:
            os._exit(code)
    os.read(told[0], 1)
    os.kill(child, first)
    for _ in range(2):
        if gap is None:
            os.read(told[0], 1)
            os.write(told[1], b"x")
        time.sleep(gap or 0)
        os.kill(child, signal.SIGTERM)
    os.write(sent[1], b"x")
    _, status = os.waitpid(child, 0)
    os.close(said[1])
    for pipe in (told, sent):
        os.close(pipe[0])
        os.close(pipe[1])
    with os.fdopen(said[0], "rb") as file:
        return os.waitstatus_to_exitcode(status), file.read().decode()


@pytest.mark.parametrize("leave", [False, True])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("gap", [0, 0.001, 0.1])
def test_repeats_are_one(gap, first, leave, monkeypatch):
    monkeypatch.setattr(interruption, "ONE", 60.0)
    code, said = ended(first, gap, leave=leave)
    either = {128 + first, 128 + signal.SIGTERM} if gap < 0.1 else {128 + first}
    assert code in either and not said


@pytest.mark.parametrize("leave", [False, True])
def test_one_that_comes_later_ends_the_process(leave, monkeypatch):
    monkeypatch.setattr(interruption, "ONE", 0.0)
    assert ended(signal.SIGTERM, None, leave=leave) == (-signal.SIGTERM, "")


def test_a_second_is_meant():
    assert interruption.ONE == 1.0


def test_without_a_signal_the_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
