"""`PersistentChains`: plain persistent chains, which give the gradient of log Z, and no value to be believed."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pyro_ebm._core.errors import NoDensityError
from pyro_ebm.distributions._caller import value_needed
from pyro_ebm.distributions.normalizers.population import Population
from pyro_ebm.distributions.normalizers.walkers import Walkers
from pyro_ebm.mcmc.moves import EnergyDensity


class PersistentChains(Walkers):
    """The gradient of log Z by plain persistent chains: persistent contrastive divergence in a Pyro program.

    Chains that are not weighted, `∇ log Z ≈ -(1/M) Σ_j ∇E(y_j)`, lag behind what is learned, and forget how much mass
    the modes have between which they do not move; so the gradient is biased, and what they add up to is no log Z, but
    drifts away from it. A loss with it goes down and has the right gradient, as good as the chains, but is no
    likelihood: it is refused where it would be taken for one, and where inference needs the value. `PersistentWalkers`
    cost as much, and have neither of the two faults; these are here to compare with.

    Args:
        num_chains: how many.
        num_steps: of each refresh, as for `PersistentWalkers`.
        generator: of all random numbers; by default one of its own, seeded from torch's.

    References:
        Tieleman 2008, Training restricted Boltzmann machines using approximations to the likelihood gradient.
        Younes 1999, On the convergence of Markovian stochastic algorithms with rapidly decreasing ergodicity rates.

    >>> import torch, pyro.distributions as dist
    >>> from pyro_ebm import EnergyDistribution, QuadraticEnergy
    >>> energy = QuadraticEnergy(torch.nn.Parameter(torch.eye(2)))
    >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> p = EnergyDistribution(energy, base, log_normalizer=PersistentChains(100))
    >>> p.log_prob(torch.zeros(5, 2)).mean().backward()
    """

    def __init__(
        self, num_chains: int = 1000, *, num_steps: int | None = None, generator: Generator | None = None
    ) -> None:
        super().__init__(
            num_chains - num_chains // 2, num_chains // 2, num_steps=num_steps, num_groups=2, generator=generator
        )

    def log_normalizer(self, distribution: EnergyDensity, /) -> Tensor:
        """See `Normalizer`.

        Raises:
            NoDensityError: where the value would be reported, or inference needs it.
            NormalizerError: as for `PersistentWalkers`.
        """
        reader = value_needed()
        if reader is not None:
            raise NoDensityError(
                f"PersistentChains: got {reader}, which needs the value of log Z, expected an inference to which its "
                "gradient is enough: SVI with Trace_ELBO and a reparameterised guide. Use PersistentWalkers or Exact."
            )
        return super().log_normalizer(distribution)

    def _settled(self, population: Population) -> Population:
        return population.forgetful()

    @property
    def _num_driving(self) -> int:
        return self._num_drivers + self._num_trackers

    def _driving(self, population: Population) -> Tensor:
        return population.all_log_weights()

    def _check_report(self, population: Population, log_density: Tensor) -> None:
        raise NoDensityError(
            "PersistentChains: got a call for a log density under torch.no_grad, to be reported, expected one for a "
            "gradient: chains without weights know no log Z. Train with PersistentWalkers to report it, or give one of "
            "its own to a new distribution with the learned energy, which anneals to it."
        )

    def report(self) -> dict[str, Tensor]:
        """What there is to know of the chains."""
        return {"acceptance_rate": torch.tensor(self.acceptance_rate)}
