"""Criteria: by what channels are ranked, whatever the training was."""

from chanprune.components import Registry
from chanprune.criteria.base import Criterion, Subject

CRITERIA = Registry("criterion")

__all__ = ["CRITERIA", "Criterion", "Subject"]
