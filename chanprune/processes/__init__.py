"""Processes: which one this is, how several work together, and how one ends."""
