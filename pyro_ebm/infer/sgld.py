"""Stochastic-gradient Langevin dynamics for Pyro models: minibatches in place of all data."""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from pyro_ebm.infer.kernel import Kernel
from pyro_ebm.infer.minibatch_target import MinibatchTarget
from pyro_ebm.infer.target import Target, build_target
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.local_algorithms import sgld_algorithm
from pyro_ebm.mcmc.settings import RunSettings


@dataclass(eq=False)
class SGLD(Kernel):
    """Stochastic-gradient Langevin dynamics: a step costs the gradient of a minibatch, and every step is made.

    A step is `x' = x + ε_t P g + √(2 ε_t P) ξ` with `ε_t = step_size (offset + t)^-decay`, in unconstrained
    coordinates; P is the identity, or a preconditioner. Say in the model what to subsample, as for SVI:
    `pyro.plate("data", N, subsample_size=B)`. Fresh indices are drawn for every step, the same for all chains, and Pyro
    scales what lies in the plate by N/B, so that the gradient g is right on average. Latent sites must lie outside of
    subsampled plates. A model without such plates, an `EnergyDistribution` or an `Energy` has its whole gradient.

    There is no correction and no adaptation: the steps of the warm-up are discarded, and the schedule goes on through
    them. Draws have a bias of the order of ε, from the length of a step and from the noise of g alike; it vanishes as
    steps shrink, for `1/2 < decay ≤ 1`, and stays with `decay=0`. All chains see one minibatch at a time, so that they
    are not independent, and R-hat is optimistic. The `lp` of a draw is the estimate of its minibatch, and data in
    subsampled plates have no log likelihood in `to_arviz`.

    Args:
        model: a Pyro model, an `EnergyDistribution`, or an `Energy` over one variable.
        step_size: a step for the log density of *all* data: of the order of a small part of the posterior variance.
        offset: b, positive: how late the schedule begins to decay.
        decay: γ: how fast steps shrink; zero keeps them.
        preconditioned: whether steps are scaled by `P = 1 / (damping + √V)`, V the running mean of g² of each
            coordinate and chain: pSGLD, whose drift by the change of P is left out. ε then counts in other units.
        smoothing: how much of V is kept at each step.
        damping: what bounds P, in the units of g.
        init_strategy: where chains start: one of Pyro's strategies.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Welling and Teh 2011, Bayesian learning via stochastic gradient Langevin dynamics.
        Vollmer, Zygalakis and Teh 2016, Exploration of the (non-)asymptotic bias and variance of SGLD.
        Li, Chen, Carlson and Carin 2016, Preconditioned stochastic gradient Langevin dynamics for deep neural networks.

    >>> import pyro, pyro.distributions as dist, torch
    >>> from pyro_ebm import MCMC, SGLD
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("data", len(y), subsample_size=10) as idx:
    ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y[idx])
    >>> kernel = SGLD(model, step_size=1e-4, decay=0.0)
    >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=50, num_chains=4, disable_progbar=True)
    >>> mcmc.run(torch.zeros(1000))
    >>> mcmc.get_samples()["mu"].shape
    torch.Size([200])
    """

    _: KW_ONLY
    step_size: float
    offset: float = 1.0
    decay: float = 0.55
    preconditioned: bool = False
    smoothing: float = 0.99
    damping: float = 1e-5

    def __post_init__(self) -> None:
        self._require("step_size", self.step_size > 0, "a positive number")
        self._require("offset", self.offset > 0, "a positive number")
        self._require("decay", 0 <= self.decay <= 1, "a number in [0, 1]")
        self._require("smoothing", 0 <= self.smoothing < 1, "a number in [0, 1)")
        self._require("damping", self.damping > 0, "a positive number")

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return sgld_algorithm(
            offset=self.offset,
            decay=self.decay,
            preconditioned=self.preconditioned,
            smoothing=self.smoothing,
            damping=self.damping,
        )

    def target(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        """The density; of a model, estimated from minibatches of its subsampled plates."""
        return build_target(self.model, args, kwargs, of_model=MinibatchTarget)

    def configure(self, settings: RunSettings, target: Target, num_chains: int) -> RunSettings:
        """The first step size, and nothing that adapts."""
        return replace(settings, step_size=self.step_size, adapt_step_size=False, adapt_metric=False)
