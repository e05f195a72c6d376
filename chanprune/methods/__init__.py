"""Methods by name: they decide which channels to keep."""

from chanprune.methods.base import (
    Conversion,
    Method,
    Plain,
    PruneOptions,
    Setting,
    Step,
    select,
)
from chanprune.methods.cucb import Cucb
from chanprune.methods.idp import IncompleteDotProducts
from chanprune.methods.layerwise import L1Norm, RandomOnce
from chanprune.methods.lgc import LearnedGroups
from chanprune.methods.multi_fidelity import MultiFidelity
from chanprune.methods.prioritized import Prioritized
from chanprune.methods.random_channels import FinalRandom, FixedRandom, RandomEveryStep
from chanprune.methods.selectconv import SelectiveConvolution
from chanprune.methods.slimming import Slimming

METHODS: dict[str, type[Method]] = {
    "none": Plain,
    "slimming": Slimming,
    "prioritized": Prioritized,
    "idp": IncompleteDotProducts,
    "cucb": Cucb,
    "final_random": FinalRandom,
    "random_every_step": RandomEveryStep,
    "fixed_random": FixedRandom,
    "l1norm": L1Norm,
    "random": RandomOnce,
    "selectconv": SelectiveConvolution,
    "lgc": LearnedGroups,
}

__all__ = [
    "METHODS",
    "Conversion",
    "Cucb",
    "FinalRandom",
    "FixedRandom",
    "IncompleteDotProducts",
    "L1Norm",
    "LearnedGroups",
    "Method",
    "MultiFidelity",
    "Plain",
    "Prioritized",
    "PruneOptions",
    "RandomEveryStep",
    "RandomOnce",
    "SelectiveConvolution",
    "Setting",
    "Slimming",
    "Step",
    "select",
]
