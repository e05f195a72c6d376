"""Ridge regression in closed form, in float64, with a strength that held-out rows choose.

What is sought is a change of weights, and what it is penalised for is its size. So, with any
strength, the squared error on all rows is at most that of the old weights, an input that is always
zero keeps its weights, and fewer rows than inputs have one solution as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRENGTHS = (1e-6, 1e-4, 1e-2, 1.0)


def correction(
    rows: Tensor, missing: Tensor, held_out: Tensor, centred: bool
) -> tuple[Tensor, Tensor]:
    """Return the change of the weights, and of the bias, that makes up for what is missing.

    The strength is relative to the mean square of the inputs. It is the one of `STRENGTHS` with the
    least squared error on the held-out rows, and all rows are used once it is chosen; if none is
    better than no change at all, nothing but the bias changes.

    Args:
        rows: (G, M, P) float64: M rows of P inputs, for each of G groups that share nothing.
        missing: (G, M, O) float64: what the outputs lack.
        held_out: (M,) True for the rows that choose the strength.
        centred: A bias is fitted as well.

    Returns:
        (G, O, P) and (G, O); zeros where there is no bias.
    """
    if not centred:
        return _weights(rows, missing, held_out), torch.zeros_like(missing[:, 0])
    mean, shift = rows.mean(1, keepdim=True), missing.mean(1, keepdim=True)
    delta = _weights(rows - mean, missing - shift, held_out)
    return delta, shift[:, 0] - (delta @ mean.mT)[..., 0]


class Equations:
    """What the weights solve; the smaller of the two forms of the same thing.

    Args:
        rows: (G, M, P).
        missing: (G, M, O).
        is_primal: In terms of the P inputs; otherwise of the M rows.
    """

    def __init__(self, rows: Tensor, missing: Tensor, is_primal: bool):
        self.rows = rows
        self.is_primal = is_primal
        self.matrix = rows.mT @ rows if is_primal else rows @ rows.mT
        self.right = rows.mT @ missing if is_primal else missing

    def add(self, other: Equations) -> None:
        """Take in further rows, in the primal form."""
        self.matrix += other.matrix
        self.right += other.right

    def solved(self, strength: float) -> Tensor:
        """Return the weights (G, O, P)."""
        scale = self.matrix.diagonal(dim1=1, dim2=2).sum(1) / self.rows.shape[2]
        ridge = torch.where(scale > 0, scale, 1) * strength
        ridged = self.matrix + torch.diag_embed(ridge[:, None].expand(self.matrix.shape[:2]))
        solution = torch.cholesky_solve(self.right, torch.linalg.cholesky(ridged))
        return (solution if self.is_primal else self.rows.mT @ solution).mT


def _weights(rows: Tensor, missing: Tensor, held_out: Tensor) -> Tensor:
    """Return (G, O, P)."""
    is_primal = rows.shape[2] <= rows.shape[1]
    seen, others = ((rows[:, part], missing[:, part]) for part in (~held_out, held_out))
    equations = Equations(*seen, is_primal)
    best, least = None, float(others[1].square().sum())
    for strength in STRENGTHS:
        delta = equations.solved(strength)
        error = float((others[1] - others[0] @ delta.mT).square().sum())
        if error < least:
            best, least = strength, error
    if best is None:
        return torch.zeros_like(delta)
    if not is_primal:
        return Equations(rows, missing, is_primal).solved(best)
    equations.add(Equations(*others, is_primal))
    return equations.solved(best)
