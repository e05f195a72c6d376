"""What a network is called with, as JSON: shapes and types, and values of whole numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from chanprune.channels import Example

TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    + (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
}
MOST_VALUES, MOST_ELEMENTS, DEEPEST = 2**16, 2**31, 16


def as_json(example: Example) -> Any:
    """Write an example; raises ValueError where JSON cannot hold it."""
    return {"args": [_told(arg) for arg in example.args], "kwargs": _told(example.kwargs)["dict"]}


def as_example(told: Any) -> Example:
    """Read what `as_json` wrote; raises ValueError."""
    match told:
        case {"args": list(args), "kwargs": dict(kwargs)} if len(told) == 2:
            named = {str(name): _read(value) for name, value in kwargs.items()}
            return Example.of_call(tuple(_read(arg) for arg in args), named)
    raise ValueError("example is not args and kwargs")


def _told(value: Any) -> Any:
    if isinstance(value, Tensor):
        name = str(value.dtype).removeprefix("torch.")
        if name not in TYPES:
            raise ValueError(f"a tensor of {value.dtype} in the example cannot be saved")
        shape = {"shape": list(value.shape), "dtype": name}
        if value.is_floating_point():
            return shape
        if value.numel() > MOST_VALUES:
            raise ValueError(f"the example has a tensor of {value.numel():,} whole numbers")
        return {**shape, "values": value.flatten().tolist()}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_told(each) for each in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _told(each) for key, each in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ValueError(f"a {type(value).__name__} in the example cannot be saved")


def _read(told: Any, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise ValueError("example is nested too deeply")
    match told:
        case {"shape": list(shape), "dtype": str(name)} if name in TYPES:
            sizes = [size for size in shape if type(size) is int and size >= 0]
            if len(sizes) < len(shape) or math.prod(sizes) > MOST_ELEMENTS:
                raise ValueError(f"example has a tensor of shape {shape}")
            if "values" not in told:
                return torch.empty(sizes, dtype=TYPES[name], device="meta")
            return torch.tensor(told["values"], dtype=TYPES[name]).reshape(sizes)
        case {"list": list(each)}:
            return [_read(one, depth + 1) for one in each]
        case {"tuple": list(each)}:
            return tuple(_read(one, depth + 1) for one in each)
        case {"dict": dict(each)}:
            return {str(key): _read(one, depth + 1) for key, one in each.items()}
        case {"value": None | bool() | int() | float() | str() as value}:
            return value
    raise ValueError(f"example holds {str(told)[:100]}")
