"""Contrastive divergence."""

from __future__ import annotations

from typing import Literal

from torch import Generator, Tensor

from pyro_ebm.objectives.checks import at_least
from pyro_ebm.objectives.data import lead_of
from pyro_ebm.objectives.negatives import Chains, as_energy_density, base_draws, contrast
from pyro_ebm.objectives.objective import Objective, Report, Trained


class ContrastiveDivergence(Objective):
    """Hold data against where chains from them come to in k steps (CD-k): `loss = E_data[E(x)] - E_chains[E(y)]`.

    Its gradient is that of the likelihood with the chains' values in place of draws of the density, and is that of no
    function: it is biased, mostly in the masses of regions that k steps do not reach, and the loss, an energy gap that
    is near zero throughout, tells nothing of how well the model fits. One chain starts at each datum, so that nothing
    is learned from the choice of starts.

    Use it for restricted Boltzmann machines that are only to be good features, for conditional energies (each context
    has the chain of its datum), and to compare with. Where a density is wanted, `PersistentWalkers` cost as much, and
    are not biased so. Steps are Metropolis-adjusted, at temperature one: noise and step size cannot be mismatched.

    Args:
        num_steps: k.
        start: where chains start: at "data", or at draws of the "base", for a generator of short chains, to be sampled
            by `ShortRun(k)`, with k of 100 or so.

    References:
        Hinton 2002, Training products of experts by minimizing contrastive divergence.
        Nijkamp, Hill, Zhu and Wu 2019, Learning non-convergent non-persistent short-run MCMC toward energy-based model.

    >>> import torch
    >>> from pyro_ebm import EnergyDistribution, QuadraticEnergy
    >>> energy = QuadraticEnergy(torch.nn.Parameter(torch.eye(2)))
    >>> loss, report = ContrastiveDivergence()(EnergyDistribution(energy), torch.randn(100, 2))
    >>> sorted(report)
    ['acceptance_rate', 'energy_gap', 'loss']
    """

    def __init__(self, num_steps: int = 1, *, start: Literal["data", "base"] = "data") -> None:
        super().__init__()
        self.num_steps = at_least(1, num_steps, "ContrastiveDivergence", "num_steps")
        if start not in ("data", "base"):
            raise ValueError(f'ContrastiveDivergence: got start={start!r}, expected "data" or "base".')
        self.start = start
        self.chains = Chains()

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        density = as_energy_density(distribution, "ContrastiveDivergence")
        first = data
        if self.start == "base":
            first = base_draws(density, lead_of(density, data), generator, "ContrastiveDivergence")
        negatives, acceptance = self.chains(density, first, self.num_steps, generator)
        return contrast(density, data, negatives, acceptance)
