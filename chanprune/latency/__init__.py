"""Channels by the time that they take: measured layer by layer, chosen, and measured again."""

from chanprune.latency.target import Certificate, Terms, Trial, meet, refuse_out_of_reach

__all__ = ["Certificate", "Terms", "Trial", "meet", "refuse_out_of_reach"]
