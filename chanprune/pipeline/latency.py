"""A time as the goal of a run: its widths are chosen once, and kept with what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chanprune.channels import ChannelGraph, Offer, Target
from chanprune.files.digest import digest
from chanprune.files.writing import write_json
from chanprune.latency import Terms, Trial, in_steps, meet, refuse_out_of_reach
from chanprune.processes import ranks
from chanprune.processes.parallel import shared
from chanprune.records.schemas import read_certificate

Kept = Callable[[Mapping[str, int]], dict[str, list[int]]]


def terms_of(section: Mapping[str, Any]) -> Terms | None:
    """Return the time that the section prune of a configuration asks for, if any."""
    if section["target_latency_ms"] is None:
        return None
    options = section["latency"]
    threads = options["threads"] or torch.get_num_threads()
    return Terms(section["target_latency_ms"], options["runtime"], options["batch"], threads)


@dataclass
class Latency(Target):
    """What a network may take.

    Attributes:
        model: The network, on its device; it is not changed.
        graph: Its channel graph.
        input_shape: (C, H, W).
        terms: What is asked.
        folder: Where measurements of layers are kept; None: nowhere.
        path: Where the certificate goes, which a run that goes on finds again; None: nowhere.
        say: Takes a line about what was measured.
    """

    model: nn.Module
    graph: ChannelGraph
    input_shape: tuple[int, ...]
    terms: Terms
    folder: Path | None
    path: Path | None
    say: Callable[[str], None]

    def meet(self, offers: Mapping[str, Offer], kept: Kept) -> Mapping[str, int]:
        """Choose the width of every group, in the first process; raises ValueError."""
        if ranks.is_first():
            try:
                answer = self._chosen(offers, kept)
            except ValueError as error:
                answer = f"{error}", {}
            shared(answer)
        else:
            answer = shared(None)
        said, widths = answer
        if not widths:
            raise ValueError(said)
        self.say(said)
        return widths

    def _chosen(self, offers: Mapping[str, Offer], kept: Kept) -> tuple[str, dict[str, int]]:
        about = [(n, o.widths.tolist(), o.worth.tolist()) for n, o in offers.items()]
        key = digest([self.terms.asked, self.terms.runtime, self.terms.batch, about], 16)
        found = read_certificate(self.path) if self.path else None
        if found is not None and found.key == key and found.widths.keys() == offers.keys():
            return found.said, found.widths
        offers = in_steps(offers, self.terms.runtime)
        trial = Trial(
            self.model, self.graph, self.input_shape, self.terms, offers, kept, self.folder
        )
        certificate = meet(trial)
        said, widths = certificate.line(), dict(certificate.widths)
        if self.path:
            write_json(self.path, {**certificate.to_json(), "key": key, "said": said})
        return said, widths


@dataclass
class WithinReach(Target):
    """Refuses, before any training, a time that not even the narrowest network meets."""

    model: nn.Module
    graph: ChannelGraph
    input_shape: tuple[int, ...]
    terms: Terms

    def meet(self, offers: Mapping[str, Offer], kept: Kept) -> Mapping[str, int]:
        """Measure the narrowest network, and leave all groups whole; raises ValueError."""
        steps = in_steps(offers, self.terms.runtime)
        refuse_out_of_reach(
            Trial(self.model, self.graph, self.input_shape, self.terms, steps, kept)
        )
        return {name: int(offer.widths[-1]) for name, offer in offers.items()}
