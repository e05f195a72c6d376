"""Which input channels a layer releases, what takes their place, and which are still executed.

Pure decisions: they change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from chanprune.channels import ChannelGraph, Plan
from chanprune.rewiring.copies import Copies
from chanprune.rewiring.damage import shares

LARGEST_SHIFT = 1.5
GATHERED_UP_TO = 0.6


def released(
    damage: Tensor,
    threshold: float,
    min_channels: int = 1,
) -> list[int]:
    """Return the inputs that can go without much damage to any output.

    Inputs go in ascending order of their largest share of any output's damage, as in the authors'
    code (on their slides, of the damage's L2 norm), as long as what has gone makes up at most
    `threshold` of the damage to every output. Outputs that nothing reaches are not counted.

    Args:
        damage: (I, O) expected channel damage.
        threshold: Share of an output's damage that may go in this call (tau).
        min_channels: So many stay.

    Returns:
        Ascending inputs.
    """
    share = shares(damage)
    if share.numel() == 0:
        return []
    ascending = share.amax(1).argsort(stable=True)
    gone = share[ascending].cumsum(0).amax(1)
    number = min(int((gone <= threshold).sum()), max(0, len(share) - min_channels))
    return sorted(ascending[:number].tolist())


def copies_for(
    damage: Tensor,
    free: Sequence[int],
    index: Tensor,
    is_copy: Tensor,
    *,
    top: int,
    max_copies: int | None,
    generator: torch.Generator,
) -> Copies:
    """Choose what free slots read instead of their channels.

    Each takes at random one of the `top` open slots whose damage is largest (L2 over the outputs'
    shares), its scale, shift and statistics, and reads the channel that it reads, shifted by up to
    1.5 pixels in x and y.

    Args:
        damage: (I, O) expected channel damage.
        free: Slots to fill.
        index: (I,) the channel that each slot reads now.
        is_copy: (I,) whether it reads it as a copy.
        top: Number of slots to choose among (K).
        max_copies: No channel has more copies than this (N_max); null: any number.
        generator: Draws the choice and the shifts.

    Returns:
        The copies; fewer than `free` where no slot may be copied any more.
    """
    open_damage = damage.clone()
    open_damage[list(free)] = 0
    score = shares(open_damage).norm(dim=1)
    best_first = [i for i in score.argsort(descending=True, stable=True).tolist() if score[i] > 0]
    taken = set(free)
    read, copied = index.tolist(), is_copy.tolist()
    number = Counter(read[i] for i in range(len(read)) if copied[i] and i not in taken)
    slots, like = [], []
    for slot in free:
        usable = [i for i in best_first if max_copies is None or number[read[i]] < max_copies]
        if not usable:
            break
        among = usable[:top]
        source = among[int(torch.randint(len(among), (), generator=generator))]
        slots.append(slot)
        like.append(source)
        number[read[source]] += 1
    shifts = (2 * torch.rand(len(slots), 2, generator=generator) - 1) * LARGEST_SHIFT
    return Copies(slots, like, [read[i] for i in like], shifts)


def executed(open_channels: Mapping[str, Sequence[int]], graph: ChannelGraph) -> Plan:
    """Return what training executes while `open_channels` are open and the others are zero.

    What is released is left out, unless what is open would be gathered from a stream and is more
    than three fifths of it: so large a gather takes longer than the channels that it saves
    (`docs/results/selectconv_densenet40_cifar10.md`).

    Args:
        open_channels: Channel group -> its open channels.
        graph: The channel graph.
    """
    groups = graph.groups
    return Plan(
        {
            name: own
            for name, own in open_channels.items()
            if not groups[name].gathered or len(own) <= GATHERED_UP_TO * groups[name].size
        }
    )
