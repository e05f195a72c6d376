"""The ways in which a run can end early without being a bug.

Everything else keeps its traceback.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from chanprune.processes import ranks
from chanprune.processes.texts import as_called, printable

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class UserError(Exception):
    """The request cannot be carried out: one line on stderr, exit code 2, nothing written.

    The message says what is wrong and what would be right.
    """

    exit_code = 2


class RunError(Exception):
    """A run that had begun cannot go on: one line on stderr, exit code 3, what was saved stays."""

    exit_code = 3


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A signal asked the run to stop, and it did so after saving: exit code 128 + signal."""

    def __init__(self, number: int):
        super().__init__(
            f"stopped by {signal.Signals(number).name}, everything saved; the same command goes on"
        )
        self.exit_code = 128 + number


@contextmanager
def one_line() -> Iterator[None]:
    """End the process with one line on stderr and the exit code of what went wrong.

    Where nobody reads the output any more, as behind `| head`, it ends without a word, as other
    commands do. A bug keeps its traceback; HYDRA_FULL_ERROR=1 keeps every traceback.
    """
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _let_output_go()
        sys.exit(128 + signal.SIGPIPE)
    except (UserError, RunError, Interrupted) as error:
        if wants_traceback:
            raise
        if ranks.is_first() or not isinstance(error, UserError):
            told = as_called(printable(" ".join(str(error).split())))
            print(f"chanprune: error: {told}", file=sys.stderr)
        _let_output_go()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("chanprune: interrupted", file=sys.stderr)
        sys.exit(130)


def _let_output_go() -> None:
    """Write what is left to print, or drop it where nobody reads: Python would complain at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
