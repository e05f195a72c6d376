"""Rewiring: layers that read shifted copies of channels (selective convolution), and what to copy.

They lie above `chanprune.channels`, whose layers (`Gathered`) answer what it has to know of them.
"""

from chanprune.rewiring.allocation import copies_for, executed, released
from chanprune.rewiring.change import Rewiring
from chanprune.rewiring.copies import Copies, Copying, allow_copies, rewire, wiring
from chanprune.rewiring.damage import expected_damage
from chanprune.rewiring.expanded import Expanded, expand, expanded, rebuild
from chanprune.rewiring.form import Form, restore, settle
from chanprune.rewiring.plain_copies import plain_copies
from chanprune.rewiring.units import Unit, selective_units

__all__ = [
    "Copies",
    "Copying",
    "Expanded",
    "Form",
    "Rewiring",
    "Unit",
    "allow_copies",
    "copies_for",
    "executed",
    "expand",
    "expanded",
    "expected_damage",
    "plain_copies",
    "rebuild",
    "released",
    "restore",
    "rewire",
    "selective_units",
    "settle",
    "wiring",
]
