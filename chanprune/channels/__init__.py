"""Channels: their graph, choice, removal and counting.

A network is traced into channel groups (`trace`), scored (`scale_scores`), some channels are chosen
(`select_global`), and the plan is carried out (`compact`). `gather` and `scatter` are the only code
that slices tensors.
"""

from chanprune.channels.absorb import Absorption
from chanprune.channels.bank import Bank, Change
from chanprune.channels.batchnorm import recalibrate, rowwise_batch_norms
from chanprune.channels.budget import Budget, Target
from chanprune.channels.cliff import find_cliff
from chanprune.channels.compact import Compaction, compact
from chanprune.channels.compared import CompactionError
from chanprune.channels.counting import (
    CONVENTIONS,
    Counts,
    LayerCount,
    count,
    count_plan,
    executed_macs,
)
from chanprune.channels.example import Example, example_of
from chanprune.channels.fidelity import Fidelity, fidelity_groups, prefix_plan
from chanprune.channels.fitting import Refit
from chanprune.channels.fold import Folded, fold, is_folded
from chanprune.channels.graph import ChannelGraph, Cut
from chanprune.channels.indices import index_widths, refuse_odd_indices
from chanprune.channels.layers import ChannelGroup
from chanprune.channels.layout import channels_last
from chanprune.channels.least_squares import refit
from chanprune.channels.modes import copied, evaluating, keeping_random_numbers
from chanprune.channels.order import order_by
from chanprune.channels.plan import Plan
from chanprune.channels.refusals import UnsupportedNetwork
from chanprune.channels.scores import (
    few_at_once,
    filter_scores,
    filters,
    scale_scores,
    taylor_scores,
)
from chanprune.channels.selection import (
    NearestError,
    Scores,
    Selection,
    by_rank,
    select_above,
    select_global,
    select_widths,
)
from chanprune.channels.selfcheck import masked
from chanprune.channels.slicing import State, gather, narrow, scatter
from chanprune.channels.steps import Offer
from chanprune.channels.trace import trace
from chanprune.channels.widened import widened

__all__ = [
    "CONVENTIONS",
    "Absorption",
    "Bank",
    "Budget",
    "Change",
    "ChannelGraph",
    "ChannelGroup",
    "Compaction",
    "CompactionError",
    "Counts",
    "Cut",
    "Example",
    "Fidelity",
    "Folded",
    "LayerCount",
    "NearestError",
    "Offer",
    "Plan",
    "Refit",
    "Scores",
    "Selection",
    "Target",
    "State",
    "UnsupportedNetwork",
    "by_rank",
    "channels_last",
    "compact",
    "copied",
    "count",
    "count_plan",
    "evaluating",
    "example_of",
    "executed_macs",
    "fidelity_groups",
    "few_at_once",
    "filter_scores",
    "filters",
    "find_cliff",
    "fold",
    "gather",
    "index_widths",
    "is_folded",
    "keeping_random_numbers",
    "masked",
    "narrow",
    "order_by",
    "prefix_plan",
    "recalibrate",
    "rowwise_batch_norms",
    "refit",
    "refuse_odd_indices",
    "scale_scores",
    "scatter",
    "select_above",
    "select_global",
    "select_widths",
    "taylor_scores",
    "trace",
    "widened",
]
