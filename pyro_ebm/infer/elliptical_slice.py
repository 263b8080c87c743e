"""Elliptical slice sampling for models with Gaussian priors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from typing import Any

from pyro_ebm.infer.coordinates import standard_normal
from pyro_ebm.infer.energy_target import EnergyTarget
from pyro_ebm.infer.kernel import Kernel
from pyro_ebm.infer.model_target import ModelTarget
from pyro_ebm.infer.pathfinder import asks_for_pathfinder
from pyro_ebm.infer.target import Target, build_target
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.local_algorithms import elliptical_slice_algorithm
from pyro_ebm.mcmc.settings import RunSettings


@dataclass(eq=False)
class EllipticalSlice(Kernel):
    """Elliptical slice sampling: exact, without gradients, and with nothing to tune; for Gaussian priors.

    It samples `N(z; 0, I) L(z)`. All latent sites of a Pyro model must be `Normal` or `MultivariateNormal`, and so must
    the base of an `EnergyDistribution`; a site may depend on others, for each is standardised where the model reaches
    it: `x = loc + scale z`. All else is the likelihood L. Draws are of x. It shines where the prior says much of the
    posterior (Gaussian processes, say) and the likelihood is cheap, or has no gradient.

    Starts that are given to `MCMC` as `initial_params` are of z; `init_to_value` takes x.

    Args:
        model: a Pyro model, or an `EnergyDistribution` with a base.
        init_strategy: where chains start: one of Pyro's strategies; the uniform one is uniform in z.

    Raises:
        ValueError: if the starts are to come from gradients.

    References:
        Murray, Adams and MacKay 2010, Elliptical slice sampling.

    >>> import pyro, pyro.distributions as dist, torch
    >>> from pyro_ebm import MCMC, EllipticalSlice
    >>> def model(x):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
    >>> mcmc = MCMC(EllipticalSlice(model), num_samples=10, warmup_steps=10, num_chains=4, disable_progbar=True)
    >>> mcmc.run(torch.ones(3))
    >>> mcmc.get_samples()["mu"].shape
    torch.Size([40])
    """

    def __post_init__(self) -> None:
        if asks_for_pathfinder(self.init_strategy):
            raise ValueError(
                "EllipticalSlice: got init_strategy init_to_pathfinder, which needs gradients, expected one of Pyro's "
                "own. Leave it out: the uniform start is in the prior's own coordinates."
            )

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return elliptical_slice_algorithm()

    def target(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
        """The density in coordinates that are standard normal a priori; without its gradient.

        Raises:
            TypeError: if a site or base is not Gaussian.
        """
        of_distribution = partial(EnergyTarget, coordinates=standard_normal, gradient=False)
        return build_target(self.model, args, kwargs, of_distribution=of_distribution, of_model=_standard_normal_target)

    def configure(self, settings: RunSettings, target: Target, num_chains: int) -> RunSettings:
        """No step size, and the base as it is."""
        return replace(settings, step_size=nan, adapt_step_size=False, adapt_metric=False)


def _standard_normal_target(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
    target = ModelTarget(model, args, kwargs, coordinates=standard_normal, gradient=False)
    if target.structure.enumerated:
        raise TypeError(
            f'EllipticalSlice: at site "{target.structure.enumerated[0]}" got a discrete distribution, expected Normal '
            "or MultivariateNormal at every latent site. Sum it out in the model, with dist.MixtureSameFamily say."
        )
    return target
