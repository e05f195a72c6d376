"""Several processes that train one network: which of them this one is, as torchrun says."""

import os


def count() -> int:
    """Return how many processes there are; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


def number() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if "LOCAL_RANK" in os.environ else 0


def number_on_host() -> int:
    """Return the number of this process among those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Tell whether this process is the one that writes and speaks."""
    return number() == 0
