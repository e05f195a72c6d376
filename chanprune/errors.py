"""The two ways in which a run can end badly without being a bug.

Everything else keeps its traceback.
"""


class UserError(Exception):
    """The request cannot be carried out: one line on stderr, exit code 2, nothing written.

    The message says what is wrong and what would be right.
    """

    exit_code = 2


class RunError(Exception):
    """A run that had begun cannot go on: one line on stderr, exit code 3, what was saved stays."""

    exit_code = 3
