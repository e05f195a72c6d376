"""Run a network in float64 although its code asks for less."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LESS = {torch.float32, torch.float16, torch.bfloat16}
MADE_OF_NUMBERS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}


class InDouble(TorchFunctionMode):
    """While it is open, casts to other real numbers are to float64, and so are new tensors.

    Those that are made of numbers hold these as exactly as they do otherwise.
    """

    def __enter__(self) -> InDouble:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self.before)

    def __torch_function__(  # noqa: D105
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given: dict[str, Any] = dict(kwargs or {})
        if func in CASTS:
            return args[0].double()
        if func in (Tensor.to, Tensor.type):
            args = tuple(_wide(argument) for argument in args)
        if "dtype" in given:
            given["dtype"] = _wide(given["dtype"])
        made = func(*args, **given)
        if func in MADE_OF_NUMBERS and isinstance(args[-1], (list, tuple, float)):
            return made.float().double() if made.is_floating_point() else made
        return made


def _wide(argument: Any) -> Any:
    is_less = isinstance(argument, torch.dtype) and argument in LESS
    return torch.float64 if is_less else argument
