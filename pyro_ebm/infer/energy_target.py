"""An energy distribution as a target: it takes leading chain dims natively, so that no vmap is needed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_ebm._core.gradients import value_alone, value_and_gradient
from pyro_ebm._core.ravel import Raveler
from pyro_ebm._core.shapes import sum_rightmost
from pyro_ebm.distributions import EnergyDistribution
from pyro_ebm.infer.coordinates import Coordinates, unconstrained
from pyro_ebm.infer.initial_points import initial_points
from pyro_ebm.infer.structure import LatentSite, Structure, floating_like
from pyro_ebm.mcmc.minibatch import Subsample

SITE = "x"


class EnergyTarget:
    """The density of one site, `"x"`, with an energy distribution.

    Args:
        distribution: the distribution; elements of its batch are sampled jointly.
        coordinates: of the site.
        gradient: whether the density has its gradient; zeros if not.

    Raises:
        EnergySupportError: if its support is discrete.
    """

    concern: str | None = None
    subsamples: tuple[Subsample, ...] = ()

    def __init__(
        self, distribution: EnergyDistribution, *, coordinates: Coordinates = unconstrained, gradient: bool = True
    ) -> None:
        self._distribution, self._gradient = distribution, gradient
        self._transform = coordinates(distribution, SITE)
        shape = distribution.shape()
        free = self._transform.inverse_shape(shape)
        parameter = floating_like(distribution)
        self.raveler = Raveler({SITE: free})
        self.like = parameter.detach().new_zeros(self.raveler.dim)
        dims = (None,) * len(distribution.batch_shape)
        site = LatentSite(shape, free, distribution.support, parameter.dtype, parameter.device, dims)
        self.structure = Structure(latents={SITE: site})

    def _log_density(self, position: Tensor) -> Tensor:
        free = self.raveler.unravel(position)[SITE]
        value = self._transform(free)
        log_prob = self._distribution.unnormalized_log_prob(value)
        jacobian = self._transform.log_abs_det_jacobian(free, value)
        return sum_rightmost(log_prob, log_prob.dim() - 1) + sum_rightmost(jacobian, jacobian.dim() - 1)

    def log_density(self, position: Tensor, /) -> tuple[Tensor, Tensor]:
        """Log density and gradient, `(chains, dim)` to `(chains,)` and `(chains, dim)`."""
        return (value_and_gradient if self._gradient else value_alone)(self._log_density, position)

    def constrain(self, position: Tensor) -> dict[str, Tensor]:
        """Unconstrained `(*lead, dim)` to `{"x": (*lead, *batch, *event)}`."""
        return {SITE: self._transform(self.raveler.unravel(position)[SITE])}

    def sample_discrete(self, position: Tensor) -> dict[str, Tensor]:
        """Nothing: there are no discrete sites."""
        return {}

    def initial_points(self, strategy: Callable[..., Any], num_chains: int) -> Tensor:
        """A start for each chain, `(chains, dim)`, by one of Pyro's strategies."""

        def draw_one(chosen: Callable[..., Any]) -> Tensor:
            value = chosen({"name": SITE, "fn": self._distribution})
            return self.raveler.ravel({SITE: self._transform.inv(value.detach())})

        def explain(point: Tensor) -> str:
            value, _ = self.log_density(point.unsqueeze(0))
            return f"At the last try the log density was {value.item()}."

        return initial_points(strategy, num_chains, self.like, draw_one, self.log_density, explain)

    def pointwise(self, values: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Nothing: there are no data and no deterministic sites."""
        return {}, {}
