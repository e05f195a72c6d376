"""Channels by the time that they take: measured layer by layer, chosen, and measured again."""

from chanprune.latency.target import Certificate, meet, refuse_out_of_reach
from chanprune.latency.trial import Terms, Trial, in_steps

__all__ = ["Certificate", "Terms", "Trial", "in_steps", "meet", "refuse_out_of_reach"]
