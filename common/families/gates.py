"""Gates: how much of each expert a row gets.

B rows, F inputs, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.families.base import GateUse
from common.families.expert_config import GateConfig


@dataclass(frozen=True)
class Routing:
    """What a gate decided for B rows.

    Attributes:
        weights: (B, E), what experts' outputs are multiplied with.
        shares: (B, E), the weights of each row divided by their sum; zeros for a row that no expert took.
        penalty: a scalar, see `GateConfig.balance`; None: there is none.
    """

    weights: Tensor
    shares: Tensor
    penalty: Tensor | None

    def use(self, rows: slice = slice(None)) -> GateUse:
        """What the gate did with some of the rows."""
        shares = self.shares.detach()[rows]
        return GateUse(mass=shares.sum(0), entropy=torch.special.entr(shares).sum())


class Gate(nn.Linear):
    """``softmax(W x)`` over E experts, or over the `top_k` of them that a row prefers.

    Noisy top-k is Shazeer et al. 2017 (arXiv 1701.06538): ``H = x W + eps * softplus(x W_noise)`` with standard normal
    eps, in training; the k largest of a row are kept, and the softmax is over those. ``noise.weight`` is W_noise.
    A single expert is weighed as in Switch (Fedus et al. 2021, arXiv 2101.03961), by its softmax among all.

    Args:
        input_size: F.
        experts: E.
        config: how it weighs them.
    """

    def __init__(self, input_size: int, experts: int, config: GateConfig) -> None:
        super().__init__(input_size, experts, bias=config.bias)
        self.noise = nn.Linear(input_size, experts, bias=False) if config.noise else None
        self._config = config
        self._chosen = min(config.top_k or experts, experts)

    @property
    def width(self) -> int:
        """Number of products a row needs now: E, or twice as many with noise."""
        return self.out_features * (2 if self._noisy else 1)

    def products(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights (E, F) and biases (E,) of the products that `route` wants, for whoever computes them."""
        bias: Tensor | None = self.bias
        zeros = self.weight.new_zeros(self.out_features)
        if self.noise is not None and self._noisy:
            return [self.weight, self.noise.weight], [zeros if bias is None else bias, zeros]
        return [self.weight], [zeros if bias is None else bias]

    def forward(self, values: Tensor) -> Tensor:
        """Inputs (B, F) to weights (B, E)."""
        weights, biases = self.products()
        return self.route(functional.linear(values, torch.cat(weights), torch.cat(biases))).weights

    def route(self, products: Tensor) -> Routing:
        """From products (B, `width`) to what experts get."""
        experts, config = self.out_features, self._config
        # Under mixed precision products are in bfloat16, which can't count beyond 256 rows.
        logits = products.to(torch.promote_types(products.dtype, torch.float32))
        if self._noisy:
            logits, widths = torch.split(logits, experts, dim=-1)
            logits = logits + torch.randn_like(logits) * functional.softplus(widths)
        limited = config.capacity is not None and self.training
        if self._chosen == experts and not limited:
            weights = _over_experts(logits)
            return Routing(weights, weights, self._balance(weights))
        chosen = torch.zeros_like(logits).scatter(-1, logits.topk(self._chosen, dim=-1).indices, 1.0)
        # Counted in integers: of floats CUDA has no running sum that `training.deterministic` would allow.
        kept = chosen * (chosen.int().cumsum(0) <= self._capacity(len(logits))) if limited else chosen
        if self._chosen == 1 < experts:
            full = _over_experts(logits)
            return Routing(full * kept, kept, self._balance(full, chosen))
        weights = _over_experts(logits.masked_fill(chosen == 0, -torch.inf))
        penalty = self._balance(weights)
        if limited:
            weights = weights * kept
            total = weights.sum(-1, keepdim=True)
            weights = weights / (total + (total == 0))
        return Routing(weights, weights, penalty)

    @property
    def _noisy(self) -> bool:
        return self.noise is not None and self.training

    def _capacity(self, rows: int) -> int:
        """Rows that an expert takes at most."""
        assert self._config.capacity is not None
        return math.ceil(self._config.capacity * rows * self._chosen / self.out_features)

    def _balance(self, weights: Tensor, chosen: Tensor | None = None) -> Tensor | None:
        """The penalty of these weights (B, E); with `chosen` (B, E), ones where an expert was the first choice,
        Switch's."""
        if not self._config.balance or not self.training:
            return None
        if chosen is not None:
            return self._config.balance * self.out_features * (chosen.mean(0) * weights.mean(0)).sum()
        importance = weights.sum(0)
        return self._config.balance * importance.var(correction=0) / importance.mean().square()


def _over_experts(logits: Tensor) -> Tensor:
    """The softmax of each row of (B, E), in the memory layout of `common.families.experts.read`: several times as fast
    as over a short last dimension."""
    return torch.softmax(logits.t(), dim=0).t()


def mean_penalty(parts: Iterable[tuple[Tensor | None, float]]) -> Tensor | None:
    """The mean over all rows of what gates ask for; None where none asks for anything.

    Penalties of a pass are means over its rows, so that they add up to the same in however many pieces a step comes
    (`client.micro_batches`), whichever tasks these hold.

    Args:
        parts: the penalty of some rows (None: nothing), and how many they are.
    """
    known = list(parts)
    rows = sum(count for _, count in known)
    found = [penalty * (count / rows) for penalty, count in known if penalty is not None]
    return torch.stack(found).sum() if found else None
