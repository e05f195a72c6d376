"""Channels: their graph, choice, removal and counting.

A network is traced into channel groups (`trace`), scored (`scale_scores`), some channels are chosen
(`select_global`), and the plan is carried out (`compact`). `gather` and `scatter` are the only code
that slices tensors.
"""

from chanprune.channels.absorb import Absorption
from chanprune.channels.bank import Bank
from chanprune.channels.batchnorm import recalibrate, rowwise_batch_norms
from chanprune.channels.calls import UnsupportedNetwork
from chanprune.channels.cliff import find_cliff
from chanprune.channels.compact import Compaction, CompactionError, compact, masked
from chanprune.channels.copies import Copies, Copying, Rewiring, allow_copies, rewire, wiring
from chanprune.channels.counting import (
    CONVENTIONS,
    Counts,
    LayerCount,
    count,
    count_plan,
    executed_macs,
)
from chanprune.channels.damage import DamageOptions, expected_damage
from chanprune.channels.expanded import Expanded, expand, expanded, rebuild
from chanprune.channels.fidelity import Fidelity, fidelity_groups, prefix_plan
from chanprune.channels.graph import ChannelGraph, ChannelGroup
from chanprune.channels.indices import index_widths, refuse_odd_indices
from chanprune.channels.modes import evaluating, keeping_random_numbers
from chanprune.channels.order import order_by
from chanprune.channels.plan import Plan
from chanprune.channels.scores import filter_scores, scale_scores, taylor_scores
from chanprune.channels.selection import (
    Scores,
    Selection,
    select_above,
    select_global,
    select_widths,
)
from chanprune.channels.slicing import State, gather, narrow, scatter
from chanprune.channels.trace import trace
from chanprune.channels.units import Unit, selective_units

__all__ = [
    "CONVENTIONS",
    "Absorption",
    "Bank",
    "ChannelGraph",
    "ChannelGroup",
    "Compaction",
    "CompactionError",
    "Copies",
    "Copying",
    "Counts",
    "DamageOptions",
    "Expanded",
    "Fidelity",
    "LayerCount",
    "Plan",
    "Rewiring",
    "Scores",
    "Selection",
    "State",
    "Unit",
    "UnsupportedNetwork",
    "allow_copies",
    "compact",
    "count",
    "count_plan",
    "evaluating",
    "executed_macs",
    "expand",
    "expanded",
    "expected_damage",
    "fidelity_groups",
    "filter_scores",
    "find_cliff",
    "gather",
    "index_widths",
    "keeping_random_numbers",
    "masked",
    "narrow",
    "order_by",
    "prefix_plan",
    "rebuild",
    "recalibrate",
    "rowwise_batch_norms",
    "refuse_odd_indices",
    "rewire",
    "scale_scores",
    "scatter",
    "select_above",
    "select_global",
    "select_widths",
    "selective_units",
    "taylor_scores",
    "trace",
    "wiring",
]
