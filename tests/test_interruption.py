"""Repeats of a signal are one, as launchers forward what a process got already."""

import os
import signal
import time

import pytest

from chanprune.errors import Interrupted
from chanprune.pipeline import interruption
from chanprune.pipeline.interruption import Interruption

ONE = 0.3  # seconds, instead of one


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(interruption, "ONE", ONE)


def ended(*moments, leave, first=signal.SIGTERM):
    """Send a process a signal, and SIGTERM after it; return its exit code and what it said.

    Args:
        moments: Seconds since the first one.
        leave: Whether it leaves `Interruption` at once, and goes on with other things.
        first: The first signal.
    """
    said, ready = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.dup2(said[1], 2)
        code = 1
        try:
            with Interruption() as asked:
                os.write(ready[1], b"x")
                while asked.requested is None:
                    time.sleep(0.01)
                if not leave:
                    time.sleep(1.5 * ONE)
                asked.stop_if_requested()
        except Interrupted as stopped:
            if leave:
                time.sleep(1.5 * ONE)
            code = stopped.exit_code
        finally:
            os._exit(code)
    os.read(ready[0], 1)
    before, number = 0.0, first
    for moment in moments:
        time.sleep(moment - before)
        os.kill(child, number)
        before, number = moment, signal.SIGTERM
    _, status = os.waitpid(child, 0)
    os.close(said[1])
    with os.fdopen(said[0], "rb") as file:
        return os.waitstatus_to_exitcode(status), file.read().decode()


@pytest.mark.parametrize("leave", [False, True])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("gap", [0, 0.001, 0.1])
def test_repeats_within_a_second_are_one(gap, first, leave):
    code, said = ended(0, gap, 2 * gap, first=first, leave=leave)
    assert (code, said) == (128 + first, "") or (gap == 0 and code == 143 and not said)


@pytest.mark.parametrize("leave", [False, True])
def test_one_that_comes_later_ends_the_process(leave):
    assert ended(0, 1.2 * ONE, leave=leave) == (-signal.SIGTERM, "")


def test_without_a_signal_the_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
