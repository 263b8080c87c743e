"""`PersistentWalkers`: weighted persistent chains that give the gradient of log Z, and track its value."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from pyro_ebm._core.errors import InitializationError
from pyro_ebm.distributions.normalizers.population import Population, relative_ess
from pyro_ebm.distributions.normalizers.surrogate import check_certain, check_fresh
from pyro_ebm.distributions.normalizers.walkers import Walkers
from pyro_ebm.mcmc.moves import EnergyDensity

# Walkers that start anew are kept unless the standard error of log Z is more than so many times what it was.
_MAX_ERROR_RATIO = 2.0


class PersistentWalkers(Walkers):
    """Log Z by weighted persistent walkers: the default for learning.

    Walkers start at draws of the base, where log Z is zero, and follow the density through every change of its
    parameters: their weights take in the change (Jarzynski's work), and moves that leave the new density invariant let
    them spread: Metropolis-adjusted Langevin where it is continuous; where it is discrete, the energy's own Gibbs step
    or Gibbs with gradients. So log Z is *tracked*, and its gradient

        ∇ log Z = -Σ_j w_j ∇E(y_j)

    does not hang on how well the moves mix between modes. As a function of the parameters it is the surrogate
    `sg[l] + log Σ_j w_j exp(-E(y_j) + sg[E(y_j)])`, whose value, gradient and Hessian are right. Walkers that drive the
    gradient and walkers that track the value are separate, for those that learning has reacted to tell a log Z that is
    too low.

    They are refreshed once for every change of the parameters, detected by value, when a gradient is asked for; never
    under `torch.no_grad`, and never inside MCMC, which needs `freeze()` where it samples parameters of the energy.

    Args:
        num_walkers: how many drive the gradient.
        num_steps: of each refresh; by default 2 of Langevin dynamics, 1 of Gibbs, one for each element of Gibbs with
            gradients.
        num_trackers: how many more track log Z; by default as many. They are rounded up to fill their groups.
        num_groups: of trackers, whose spread gives the standard error.
        generator: of all random numbers; by default one of its own, seeded from torch's.

    References:
        Carbone, Hua, Coste and Vanden-Eijnden 2023, Efficient training of energy-based models using Jarzynski equality.
        Tieleman 2008, Training restricted Boltzmann machines using approximations to the likelihood gradient.

    >>> import torch, pyro.distributions as dist
    >>> from pyro_ebm import EnergyDistribution, NeuralEnergy
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1), torch.nn.Flatten(0))
    >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> walkers = PersistentWalkers(num_walkers=100)
    >>> p = EnergyDistribution(NeuralEnergy(net, event_shape=(2,)), base, log_normalizer=walkers)
    >>> p.log_prob(torch.zeros(5, 2)).mean().backward()
    """

    def __init__(
        self,
        num_walkers: int = 2000,
        *,
        num_steps: int | None = None,
        num_trackers: int | None = None,
        num_groups: int = 16,
        generator: Generator | None = None,
    ) -> None:
        trackers = num_walkers if num_trackers is None else num_trackers
        super().__init__(num_walkers, trackers, num_steps=num_steps, num_groups=num_groups, generator=generator)

    def _settled(self, population: Population) -> Population:
        return population

    @property
    def _num_driving(self) -> int:
        return self._num_drivers

    def _driving(self, population: Population) -> Tensor:
        return population.driver_log_weights()

    def _check_report(self, population: Population, log_density: Tensor) -> None:
        check_certain(population.standard_error())
        check_fresh(population.all_log_weights(), log_density, population.log_density)

    def renew(self, distribution: EnergyDensity) -> bool:
        """Start anew, as `restart` does, unless that tells log Z far worse than following does by now.

        Following adds up the noise of every change, so that the shares of modes far apart drift: those that drive the
        gradient come to say what learning wants to hear. New walkers know nothing of it.

        Returns:
            Whether they were started anew: not if the standard error were more than doubled, nor if annealing does not
            reach the density.
        """
        population, _ = self._required()
        before = population, self._fingerprint, self.num_stages
        try:
            self.restart(distribution)
        except InitializationError:
            return False
        renewed = bool((self.standard_error <= _MAX_ERROR_RATIO * population.standard_error()).all())
        if not renewed:
            self._population, self._fingerprint, self.num_stages = before
        return renewed

    @property
    def value(self) -> Tensor:
        """Log Z at the anchor, in nats, `(*batch,)`.

        Raises:
            RuntimeError: before the first call.
        """
        return self._required()[0].log_normalizer()

    @property
    def standard_error(self) -> Tensor:
        """Of `value`, in nats, `(*batch,)`, by the spread of the groups of trackers."""
        return self._required()[0].standard_error()

    @property
    def ess(self) -> Tensor:
        """The share of the walkers that drive the gradient which count, `(*batch,)`."""
        population, _ = self._required()
        return relative_ess(population.log_weight[: population.num_drivers])

    def report(self) -> dict[str, Tensor]:
        """What there is to know of the walkers, each `(*batch,)` or `()`.

        `log_density` is the mean of the unnormalised log density over the walkers that drive the gradient.
        """
        population, _ = self._required()
        weights, drivers = population.driver_log_weights().exp(), population.log_density[: population.num_drivers]
        return {
            "log_density": (weights * drivers).sum(0),
            "log_normalizer": self.value,
            "log_normalizer_error": self.standard_error,
            "ess": self.ess,
            "acceptance_rate": torch.tensor(self.acceptance_rate),
        }
