"""The annealing path of restricted Boltzmann machines."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Generator, Tensor

from pyro_ebm._core.products import rows_times
from pyro_ebm.models.two_layers import block_gibbs, softplus


class BaseRatePath:
    """From the reference r of a machine to the machine, through machines whose weights grow.

    `log f_β(v) = (1-β) log r(v) + β bᵀv + Σ_j log ((1 + exp(β a_j)) / 2^(1-β))`, with `a = c + Wᵀv`: it is normalised
    at β = 0 and `-F(v)` at β = 1, and every density between them is that of `RBM.tempered(β)`, with a block Gibbs
    step of its own, which the geometric path has not.

    Args:
        start: log-odds of the reference, whose units are independent, `(*batch, V)`.
        weight: W, `(*batch, V, H)`.
        fields: b and c of the machine without offsets, `(*batch, V)` and `(*batch, H)`.
        generator: of the transitions; by default torch's global one.

    References:
        Salakhutdinov and Murray 2008, On the quantitative analysis of deep belief networks.
    """

    def __init__(
        self,
        start: Tensor,
        weight: Tensor,
        fields: tuple[Tensor, Tensor],
        generator: Generator | None = None,
    ) -> None:
        self._start, self._weight = start.detach(), weight.detach()
        self._visible, self._hidden = (field.detach() for field in fields)
        self._generator = generator

    def __call__(self, values: Tensor) -> Callable[[Tensor], Tensor]:
        """The log density at `(chains, *batch, V)` as a function of β, `(chains, *batch)`."""
        values = values.to(self._weight)
        reference = (values * self._start).sum(-1) - softplus(self._start).sum(-1)
        activation = self._hidden + rows_times(values, self._weight)
        linear = (values * self._visible).sum(-1)
        even = activation.shape[-1] * math.log(2)

        def log_density(beta: Tensor) -> Tensor:
            features: Tensor = softplus(beta * activation).sum(-1)
            return (1 - beta) * (reference - even) + beta * linear + features

        return log_density

    def move(self, values: Tensor, log_density: Callable[[Tensor], Tensor], beta: Tensor) -> Tensor:
        """A block Gibbs step of the machine at β; the log density is not needed."""
        visible = (1 - beta) * self._start + beta * self._visible
        values = values.to(self._weight)
        return block_gibbs(values, beta * self._weight, visible, beta * self._hidden, 1.0, self._generator)
