"""What is raised where a network cannot be pruned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UnsupportedNetwork(ValueError):  # noqa: N818
    """The network cannot be traced, or its channels cannot be followed; names the layer."""


class Unforeseen(UnsupportedNetwork):
    """A refusal of what no rule was made for; the fault is this project's."""


@contextmanager
def refusing(what: str, foreseen: type[Exception] = UnsupportedNetwork) -> Iterator[None]:
    """Turn whatever is raised, and was not foreseen, into a refusal.

    Args:
        what: What cannot be done then, as the refusal says it.
        foreseen: What is passed on.

    Raises:
        Unforeseen: Instead of what was raised.
    """
    try:
        yield
    except (foreseen, MemoryError):
        raise
    except Exception as error:
        raise Unforeseen(
            f"{what} ({type(error).__name__}: {first_line(error)}); trace a part of the network "
            "without it (example_of)"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
