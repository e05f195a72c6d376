"""Run a network in float64 although its code asks for less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LESS = {torch.float32, torch.float16, torch.bfloat16}
CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}


class InDouble(TorchFunctionMode):
    """While it is open, casts of float64 to less leave it as it is, and new tensors are float64."""

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
        given: Mapping[str, Any] = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype is torch.float64:
            if func in CASTS:
                return args[0]
            if func is Tensor.to:
                args = tuple(_wide(argument) for argument in args)
                given = {key: _wide(argument) for key, argument in given.items()}
        return func(*args, **given)


def _wide(argument: Any) -> Any:
    is_less = isinstance(argument, torch.dtype) and argument in LESS
    return torch.float64 if is_less else argument
