"""What runs a network, and how long it takes."""

from chanprune.runtimes.clock import Call, Timing, interleaved
from chanprune.runtimes.runtime import RUNTIMES, Runtime, prepared, threads_of

__all__ = ["RUNTIMES", "Call", "Runtime", "Timing", "interleaved", "prepared", "threads_of"]
