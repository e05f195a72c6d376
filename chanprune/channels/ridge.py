"""Ridge regression in closed form, in float64, with a strength that held-out rows choose.

What is sought is a change of weights, and what it is penalised for is its size: with any strength
the squared error on the rows that it saw is at most that of the old weights, an input that is
always zero keeps its weights, and fewer rows than inputs have one solution as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRENGTHS = (1e-6, 1e-4, 1e-2, 1.0)


def correction(rows: Tensor, missing: Tensor, held_out: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """Return the change of the weights, and of the bias, that makes up for what is missing.

    The strength is relative to the mean square of the inputs. It is the one of `STRENGTHS` with the
    least squared error on the held-out rows; if none is better than no change at all, nothing but
    the bias changes. All rows are used once it is chosen.

    Args:
        rows: (G, M, P) float64: M rows of P inputs, for each of G groups that share nothing;
            changed in place if `centred`.
        missing: (G, M, O) float64: what the outputs lack; likewise.
        held_out: (M,) True for the rows that choose the strength.
        centred: A bias is fitted as well.

    Returns:
        (G, O, P) and (G, O); zeros where there is no bias.
    """
    shift = torch.zeros_like(missing[:, 0])
    if centred:
        mean, shift = rows.mean(1, keepdim=True), missing.mean(1, keepdim=True)
        rows, missing, shift = rows.sub_(mean), missing.sub_(shift), shift[:, 0]
    delta = _weights(rows, missing, held_out)
    if centred:
        shift = shift - (delta @ mean.mT)[..., 0]
    return delta, shift


def _weights(rows: Tensor, missing: Tensor, held_out: Tensor) -> Tensor:
    seen = rows[:, ~held_out], missing[:, ~held_out]
    others = rows[:, held_out], missing[:, held_out]
    nothing = rows.new_zeros((len(rows), missing.shape[2], rows.shape[2]))
    if not rows.any():
        return nothing
    is_primal = rows.shape[2] <= len(held_out)
    equations = _primal(*seen) if is_primal else _dual(*seen)
    best, least = None, others[1].square().sum().item()
    for strength in STRENGTHS:
        delta = _solved(equations, strength, seen[0], is_primal)
        error = (others[1] - others[0] @ delta.mT).square().sum().item()
        if error < least:
            best, least = strength, error
    if best is None:
        return nothing
    if is_primal:
        own = _primal(*others)
        equations = equations[0] + own[0], equations[1] + own[1]
    else:
        equations = _dual(rows, missing)
    return _solved(equations, best, rows, is_primal)


def _primal(rows: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    return rows.mT @ rows, rows.mT @ missing


def _dual(rows: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    return rows @ rows.mT, missing


def _solved(
    equations: tuple[Tensor, Tensor], strength: float, rows: Tensor, is_primal: bool
) -> Tensor:
    """Return (G, O, P)."""
    matrix, right = equations
    scale = matrix.diagonal(dim1=1, dim2=2).sum(1) / rows.shape[2]
    scale = torch.where(scale > 0, scale, 1) * strength
    ridged = matrix + scale[:, None, None] * torch.eye(matrix.shape[1]).to(matrix)
    solution = torch.cholesky_solve(right, torch.linalg.cholesky(ridged))
    return (solution if is_primal else rows.mT @ solution).mT
