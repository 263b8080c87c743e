"""Persistent contrastive divergence."""

from __future__ import annotations

import torch
from torch import Generator, Size, Tensor

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm.mcmc.moves import EnergyDensity
from pyro_ebm.objectives.checks import at_least
from pyro_ebm.objectives.data import lead_of
from pyro_ebm.objectives.fitted import Fitted
from pyro_ebm.objectives.negatives import Chains, as_energy_density, base_draws, contrast
from pyro_ebm.objectives.objective import Objective, Report, Trained


class PersistentContrastiveDivergence(Objective):
    """Hold data against chains that go on from step to step (PCD): `loss = E_data[E(x)] - E_chains[E(y)]`.

    As far as the chains keep up with the density, its gradient is that of the likelihood. They do not where modes are
    far apart, for a mode keeps the chains it had; then the loss runs away. `PersistentWalkers`, which are weighted
    chains, cost as much, do not have this fault, and tell log Z; this objective is here to compare with.

    Args:
        num_chains: how many, for each density of a batch. They start at draws of the base, or, without one, at data.
        num_steps: of each call; by default 2 of Langevin dynamics, 1 of Gibbs, one for each element of Gibbs with
            gradients.

    References:
        Tieleman 2008, Training restricted Boltzmann machines using approximations to the likelihood gradient.
        Younes 1999, On the convergence of Markovian stochastic algorithms with rapidly decreasing ergodicity rates.

    >>> from pyro_ebm import EnergyDistribution, QuadraticEnergy
    >>> energy = QuadraticEnergy(torch.nn.Parameter(torch.eye(2)))
    >>> loss, report = PersistentContrastiveDivergence(100)(EnergyDistribution(energy), torch.randn(100, 2))
    >>> sorted(report)
    ['acceptance_rate', 'energy_gap', 'loss']
    """

    def __init__(self, num_chains: int = 1000, *, num_steps: int | None = None) -> None:
        super().__init__()
        self.num_chains = at_least(1, num_chains, "PersistentContrastiveDivergence", "num_chains")
        if num_steps is not None:
            at_least(1, num_steps, "PersistentContrastiveDivergence", "num_steps")
        self.num_steps = num_steps
        self.chains, self.positions = Chains(), _Positions()

    def _loss(self, distribution: Trained, data: Tensor, generator: Generator | None) -> tuple[Tensor, Report]:
        density = as_energy_density(distribution, "PersistentContrastiveDivergence")
        first = self.positions(density, data, self.num_chains, generator)
        self.positions.value, acceptance = self.chains(density, first, self.num_steps, generator)
        return contrast(density, data, self.positions.value, acceptance)


class _Positions(Fitted):
    """Where the chains are."""

    value: Tensor | None

    def __init__(self) -> None:
        super().__init__("value")

    def forward(self, density: EnergyDensity, data: Tensor, num_chains: int, generator: Generator | None) -> Tensor:
        """The chains, `(num_chains, *batch, *event)`, started if this is the first call.

        Raises:
            EnergyShapeError: if the batch is another one than at the first call.
        """
        shape = Size([num_chains]) + density.batch_shape
        if self.value is None:
            if density.base is not None:
                return base_draws(density, shape, generator, "PersistentContrastiveDivergence")
            rows = data.reshape(-1, *density.batch_shape, *density.event_shape)
            index = torch.randint(len(rows), (num_chains,), generator=generator, device=data.device)
            return rows[index]
        if self.value.shape != shape + density.event_shape:
            lead = tuple(lead_of(density, self.value)[1:])
            raise EnergyShapeError(
                f"PersistentContrastiveDivergence: got energies of batch shape {tuple(density.batch_shape)}, expected "
                f"{lead}, as at the first call: chains belong to a density. For contexts that change from call to call "
                "use ContrastiveDivergence, or ConditionalWalkers in a Pyro model."
            )
        return self.value
