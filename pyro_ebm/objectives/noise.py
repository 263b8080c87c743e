"""The noise that data are told from."""

from __future__ import annotations

from typing import cast

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Categorical, Distribution, Independent, MultivariateNormal

from pyro_ebm._core.errors import EnergyShapeError, EnergySupportError, NonFiniteError
from pyro_ebm._core.protocols import Density
from pyro_ebm._core.randomness import seeded
from pyro_ebm._core.statistics import frequencies, mean_and_covariance
from pyro_ebm._core.supports import state_range
from pyro_ebm.energies import DistributionEnergy
from pyro_ebm.objectives.data import Domain, lead_of
from pyro_ebm.objectives.fitted import Fitted


class Noise(Fitted):
    """A normalised distribution over events, given or fitted to the first data.

    Fitted it is, over real numbers, a Gaussian with the data's mean and covariance (only variances, with fewer than 10
    data for each dim); over finite supports, independent elements with the data's frequencies, one count added to each.

    Args:
        given: any distribution that can be sampled, whose batch shape is `()` or that of the densities; its tensors are
            copied, as `DistributionEnergy` does. `None` for a fitted one.
    """

    given: DistributionEnergy | None
    mean: Tensor | None
    scale_tril: Tensor | None
    values: Tensor | None
    frequencies: Tensor | None

    def __init__(self, given: Distribution | None = None) -> None:
        super().__init__("mean", "scale_tril", "values", "frequencies")
        self.given = None if given is None else DistributionEnergy(given)

    def fit(self, density: Density, data: Tensor, what: str) -> None:
        """Check the noise given, or fit it to data `(*sample, *batch, *event)`, if this is the first call.

        Raises:
            EnergyShapeError: if its shapes do not fit those of the densities.
            EnergySupportError: if there is none to be fitted on the support.
            ValueError: if the data do not span the space.
        """
        if self.given is not None:
            lead, batch = lead_of(density, data), self.given.batch_shape
            if self.given.event_shape != density.event_shape or lead[len(lead) - len(batch) :] != batch:
                raise EnergyShapeError(
                    f"{what}: got noise with batch and event shapes {tuple(batch)} and "
                    f"{tuple(self.given.event_shape)}, expected () or {tuple(density.batch_shape)}, and "
                    f"{tuple(density.event_shape)}. Use noise.to_event(n), noise.expand(shape)."
                )
            return
        if self.is_fitted:
            return
        events = data.reshape(-1, density.event_shape.numel())
        if Domain.REAL.contains(density.support):
            self._fit_gaussian(events, what)
        elif Domain.FINITE.contains(density.support):
            self._fit_frequencies(events, *cast(tuple[int, int, int], state_range(density.support)))
        else:
            raise EnergySupportError(
                f"{what}: got a distribution on {density.support}, expected one on {Domain.REAL.value}, or on "
                f"{Domain.FINITE.value}, where noise can be fitted. Give the noise, on that support."
            )

    def _fit_gaussian(self, events: Tensor, what: str) -> None:
        self.mean, covariance = mean_and_covariance(events)
        self.scale_tril, info = torch.linalg.cholesky_ex(covariance)
        if bool(info != 0):
            self.mean = self.scale_tril = None
            raise ValueError(
                f"{what}: got first data of {len(events)} events with a singular covariance, expected some spread in "
                "every direction to fit noise to. Give the noise."
            )

    def _fit_frequencies(self, events: Tensor, low: int, step: int, states: int) -> None:
        self.values = low + step * torch.arange(states, device=events.device)
        self.frequencies = frequencies(events, self.values)

    def _distribution(self) -> Distribution:
        """The fitted noise over flat events, of numbers of states where they are finite."""
        if self.mean is not None:
            return MultivariateNormal(self.mean, scale_tril=self.scale_tril, validate_args=False)
        return Independent(Categorical(cast(Tensor, self.frequencies), validate_args=False), 1)

    def sample(self, density: Density, like: Tensor, sample_shape: Size, generator: Generator | None) -> Tensor:
        """Draws `(*sample, *event)` with the dtype of `like`, without a gradient."""
        with torch.no_grad(), seeded(generator, like.device):
            if self.given is not None:
                return self.given.sample(sample_shape[: len(sample_shape) - len(self.given.batch_shape)]).to(like.dtype)
            flat = self._distribution().sample(sample_shape)
        if self.values is not None:
            flat = self.values[flat].to(like.dtype)
        return flat.reshape(*sample_shape, *density.event_shape)

    def differentiable_sample(self, sample_shape: Size) -> Tensor:
        """Draws of the noise given, `(*sample, *event)`, with a graph to its parameters."""
        given = cast(DistributionEnergy, self.given)
        return given.distribution.rsample(sample_shape[: len(sample_shape) - len(given.batch_shape)])

    def log_prob(self, density: Density, value: Tensor) -> Tensor:
        """Its log density at `(*sample, *event)`, `(*sample,)`; if it was given, with a graph to its parameters."""
        if self.given is not None:
            return -cast(Tensor, self.given(value))
        flat = value.reshape(*lead_of(density, value), -1)
        if self.values is not None:
            flat = torch.searchsorted(self.values, flat.to(self.values.dtype).contiguous())
        return self._distribution().log_prob(flat)


def noise_at_data(noise: Noise, density: Density, data: Tensor) -> Tensor:
    """The log density of the noise at data.

    Raises:
        NonFiniteError: if the noise does not cover the data.
    """
    log_noise = noise.log_prob(density, data)
    if not bool(log_noise.isfinite().all()):
        raise NonFiniteError(
            f"the noise at data: got log densities that are not finite at {int((~log_noise.isfinite()).sum())} of "
            f"{log_noise.numel()} data, expected noise that covers the data. Give noise with heavier tails."
        )
    return log_noise
