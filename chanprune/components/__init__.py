"""Components: methods, criteria, models and data sets that own their options, found by a scan.

A component is a class or function with a mark, `@method("slimming")`. Keys, types, ranges, defaults
and help of its options are those of its signature and docstring, and are read without importing it.
Nothing here imports PyTorch.
"""

from annotated_types import Ge, Gt, Le, Lt

from chanprune.components.component import KINDS, Component, Option
from chanprune.components.decorators import criterion, dataset, method, model
from chanprune.components.options import (
    Count,
    CountOrZero,
    FilePath,
    Levels,
    NotNegative,
    Options,
    PartOrAll,
    Positive,
    Share,
    ShareOrAll,
    Text,
    Width,
    is_path,
)
from chanprune.components.scan import (
    Registry,
    find,
    imported,
    in_use,
    is_own,
    known,
    make,
    own_code,
    use,
)
from chanprune.components.targets import factory_of, refuse_unvouched, vouch

__all__ = [
    "KINDS",
    "Component",
    "Count",
    "CountOrZero",
    "FilePath",
    "Ge",
    "Gt",
    "Le",
    "Levels",
    "Lt",
    "NotNegative",
    "Option",
    "Options",
    "PartOrAll",
    "Positive",
    "Registry",
    "Share",
    "ShareOrAll",
    "Text",
    "Width",
    "criterion",
    "dataset",
    "factory_of",
    "find",
    "imported",
    "in_use",
    "is_own",
    "make",
    "own_code",
    "is_path",
    "known",
    "method",
    "model",
    "refuse_unvouched",
    "use",
    "vouch",
]
