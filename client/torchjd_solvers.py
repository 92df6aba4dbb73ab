"""Solvers for torchjd's UPGrad and CAGrad that need scipy only.

torchjd solves UPGrad's projection with quadprog, which is under the GPL, and CAGrad's problem with cvxpy, which brings
ten packages. A server that asks for a method must find it on every client, so neither is left to an extra.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls
from torch import Tensor
from torchjd.aggregation import Weighting
from torchjd.linalg import DualConeProjector, PSDMatrix

Array = NDArray[np.float64]

#: A direction this small beside all gradients together counts as none (torchjd's bound).
NO_DIRECTION: Final = 1e-4


class LeastSquaresProjector(DualConeProjector):
    """Projection onto the dual cone of the gradients, Proposition 1 of Quinton & Rey 2024 (arXiv 2406.16232).

    ``min v'Gv`` over ``v >= u``, with ``G = R'R`` and ``v = u + x``, is the least-squares problem ``min |Rx + Ru|``
    over ``x >= 0``, which scipy solves exactly, G singular or not.
    """

    def __call__(self, U: Tensor, G: PSDMatrix) -> Tensor:  # torchjd's names
        """Weights ``(..., m)`` of the projected vectors, for weights ``U`` ``(..., m)`` and the Gramian ``(m, m)``."""
        gramian, weights = _array(G), _array(U)
        trace = float(np.trace(gramian))
        if trace <= 0:
            return U
        root = _root(gramian / trace)
        projected = np.apply_along_axis(lambda u: u + nnls(root, -root @ u)[0], -1, weights)
        return torch.as_tensor(projected, device=G.device, dtype=G.dtype)


class CAGradWeighting(Weighting[PSDMatrix]):
    """Weights of Conflict-Averse Gradient Descent, Algorithm 1 of Liu et al. 2021 (arXiv 2110.14048).

    The weights of `torchjd.aggregation.CAGrad`: ``1/m + c |g0| / |g_w| w``, where w on the simplex minimises
    ``g_w . g0 + c |g0| |g_w|``. The problem is convex; scipy's SLSQP solves it, as in the authors' code.

    Args:
        c: how far the direction may stray from the mean gradient g0, as a share of its size.
    """

    def __init__(self, c: float) -> None:
        super().__init__()
        self._c = c

    def forward(self, gramian: PSDMatrix, /) -> Tensor:
        """Weights ``(m,)`` for a Gramian ``(m, m)``."""
        count = len(gramian)
        trace = float(gramian.trace())
        if trace <= 0:
            return torch.zeros_like(gramian[0])
        rows = _root(_array(gramian) / trace).T  # (m, k): gradients of the same inner products
        mean = rows.mean(axis=0)
        radius = self._c * float(np.linalg.norm(mean))

        def size(w: Array) -> float:
            return float(np.sqrt(np.sum((w @ rows) ** 2) + 1e-16))  # smooth where gradients cancel out

        def objective(w: Array) -> tuple[float, Array]:
            direction = w @ rows
            return float(direction @ mean) + radius * size(w), rows @ mean + radius * (rows @ direction) / size(w)

        start = np.full(count, 1 / count)
        whole: Any = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
        found = minimize(
            objective, start, jac=True, bounds=[(0, 1)] * count, constraints=whole, options={"ftol": 1e-12}
        )
        w = np.clip(found.x, 0, None)
        if size(w) < NO_DIRECTION:
            return torch.zeros_like(gramian[0])
        return torch.as_tensor(start + radius / size(w) * w, device=gramian.device, dtype=gramian.dtype)


def _root(gramian: Array) -> Array:
    """R with ``R'R`` the matrix, which is positive semidefinite up to rounding."""
    values, vectors = np.linalg.eigh(gramian)
    root: Array = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    return root


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy().astype(np.float64)
