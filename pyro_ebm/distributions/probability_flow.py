"""`ProbabilityFlow`: a family of energies as a flow from noise to data, with draws and an exact log density."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, Independent, Normal, constraints
from torch.distributions.constraints import Constraint
from torchdiffeq import odeint

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm._core.randomness import normal, seeded
from pyro_ebm._core.shapes import broadcast, leading_shape, sum_rightmost
from pyro_ebm.energies import TimeConditional
from pyro_ebm.energies.time_conditional import levels_for

# Of the integration of a density; a smooth flow takes tens.
_MAX_STEPS = 10_000


class ProbabilityFlow(TorchDistribution):  # type: ignore[misc]
    """A time-conditional energy as a normalised distribution: the deterministic flow of a diffusion model.

    `dx/dσ = σ ∇E(x, σ)` carries the densities of all levels into one another. From a draw of noise at the highest level
    it leads down to a draw of the lowest; from data at the lowest up to noise, and on the way

        log p(x) = log prior(x_σmax) + ∫ σ ∇²E(x_σ, σ) dσ

    in nats. Draws take a step of Heun's method between each two levels; the density is integrated from end to end, in
    steps whose error is below a tolerance. **This is the density of the flow.** It is `exp(-E(x, σ)) / Z` of the lowest
    level where the family is that of smoothed data, and not where it is a sum of families, which `sample_annealed`
    samples.

    Args:
        family: the energies, over real numbers.
        levels: falling, `(L,)`: see `noise_levels`; twenty are enough for draws of most.
        prior: the density at the highest level; `N(0, σ²)` if not given, right where that is far above the data's
            spread.
        num_probes: `None` for the exact Laplacian, by as many second derivatives as dims; else the number of random
            signs for Hutchinson's unbiased estimate of it, anew in every call.
        tolerance: the error of log p in a step, in nats.
        validate_args: whether values are checked; torch's default.

    Raises:
        EnergySupportError: if the family is not over real numbers.
        EnergyShapeError: if the prior is not over the family's events.
        ValueError: if the levels do not fall, there are no probes, or the tolerance is not positive.

    References:
        Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole 2021, Score-based generative modeling through stochastic
        differential equations.
        Karras, Aittala, Aila and Laine 2022, Elucidating the design space of diffusion-based generative models.
        Dormand and Prince 1980, A family of embedded Runge-Kutta formulae.

    >>> from pyro_ebm import QuadraticEnergy, noise_levels, time_conditional
    >>> family = time_conditional(lambda s: QuadraticEnergy(torch.eye(2) / (1 + s**2)), (2,))
    >>> flow = ProbabilityFlow(family, noise_levels(1e-3, 100.0, 20))
    >>> flow.sample((5,)).shape, flow.log_prob(torch.zeros(2)).detach()
    (torch.Size([5, 2]), tensor(-1.83...))
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012  (torch's own declaration)
    has_rsample = False

    def __init__(
        self,
        family: TimeConditional,
        levels: Tensor,
        *,
        prior: Distribution | None = None,
        num_probes: int | None = None,
        tolerance: float = 1e-4,
        validate_args: bool | None = None,
    ) -> None:
        what = "ProbabilityFlow"
        self.levels = levels_for(family, levels, what)
        if prior is not None and prior.event_shape != family.event_shape:
            raise EnergyShapeError(
                f"{what}: got a prior with event shape {tuple(prior.event_shape)}, expected the family's "
                f"{tuple(family.event_shape)}. Turn batch dims into event dims with prior.to_event(n)."
            )
        if num_probes is not None and num_probes < 1:
            raise ValueError(f"{what}: got num_probes={num_probes}, expected at least 1, or None.")
        if not tolerance > 0:
            raise ValueError(f"{what}: got tolerance={tolerance}, expected a positive number of nats.")
        self.family, self.num_probes, self.tolerance = family, num_probes, tolerance
        highest = family.at(self.levels[0])
        if prior is None:
            zero = like_of(highest).new_zeros(family.event_shape)
            prior = Independent(Normal(zero, self.levels[0].to(zero)), len(family.event_shape))
        self.prior: Distribution = prior
        super().__init__(
            broadcast([highest.batch_shape, prior.batch_shape], what), family.event_shape, validate_args=validate_args
        )

    def expand(self, batch_shape: Size, _instance: Any = None) -> ProbabilityFlow:
        """The same density for a larger batch."""
        new: ProbabilityFlow = self._get_checked_instance(ProbabilityFlow, _instance)
        new.family, new.levels, new.prior = self.family, self.levels, self.prior
        new.num_probes, new.tolerance = self.num_probes, self.tolerance
        shape = broadcast([Size(batch_shape), self.batch_shape], "ProbabilityFlow.expand")
        super(ProbabilityFlow, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property
    def support(self) -> Constraint:
        """All real numbers."""
        return self.family.support

    def sample(self, sample_shape: Any = Size(), *, generator: Generator | None = None) -> Tensor:  # noqa: B008
        """Draws `(*sample, *batch, *event)`, detached: noise, carried down the flow."""
        with torch.no_grad():
            with seeded(generator, self.levels.device):
                noise = self.prior.expand(self.batch_shape).sample(Size(sample_shape))
            return self.transport(noise)

    def transport(self, noise: Tensor) -> Tensor:
        """Carry noise of the highest level, `(*sample, *batch, *event)`, down to the lowest, by Heun's steps."""
        x = noise
        for here, there in pairwise(self.levels.to(x).unbind()):
            velocity = self._gradient(x, here)[0] * here
            onward = self._gradient(x + (there - here) * velocity, there)[0] * there
            x = x + 0.5 * (there - here) * (velocity + onward)
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density in nats, `(*sample, *batch, *event)` to `(*sample, *batch)`.

        Where gradients are enabled its graph holds the whole flow: use `torch.no_grad()` to evaluate.

        Raises:
            RuntimeError: if the tolerance would take too many steps, or gradients are not finite.
        """
        if self._validate_args:
            self._validate_sample(value)
        lead = broadcast([leading_shape(value, self.event_shape, "ProbabilityFlow"), self.batch_shape], "log_prob")
        x = value.expand(*lead, *self.event_shape)
        probes = self._probes(x)

        # In units of the level, errors of x are in nats too: a score is 1/σ at most.
        def slope(log_sigma: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            sigma = log_sigma.exp().to(x)
            gradient, laplacian = self._gradient(state[0] * sigma, sigma, probes)
            return sigma * gradient - state[0], sigma.square() * laplacian

        def largest(error: tuple[Tensor, Tensor]) -> Tensor:
            return torch.stack([each.abs().amax() for each in error]).amax()

        highest, lowest = self.levels[0].to(x), self.levels[-1].to(x)
        times = torch.stack([lowest, highest]).double().log()
        try:
            noise, gained = odeint(
                slope,
                (x / lowest, x.new_zeros(lead)),
                times,
                method="dopri5",
                rtol=0.0,
                atol=self.tolerance,
                options={"norm": largest, "max_num_steps": _MAX_STEPS, "dtype": torch.double},
            )
        except AssertionError as error:
            raise RuntimeError(
                f"ProbabilityFlow: got a flow of more than {_MAX_STEPS} steps, or of steps without length ({error}), "
                "expected a smooth one. Raise the tolerance; look at the energy's gradients: they may not be finite."
            ) from error
        log_prob: Tensor = self.prior.log_prob(noise[-1] * highest) + gained[-1]
        return log_prob

    def _probes(self, x: Tensor) -> Tensor:
        """Directions of second derivatives, `(count, *lead, *event)`, whose outer products average to the identity."""
        if self.num_probes is not None:
            drawn = normal((self.num_probes, *x.shape), x, None).sign()
            return torch.where(drawn == 0, 1, drawn)
        size: int = self.event_shape.numel()
        axes: Tensor = size**0.5 * torch.eye(size, dtype=x.dtype, device=x.device)
        lead = x.dim() - len(self.event_shape)
        return axes.reshape(size, *[1] * lead, *self.event_shape).expand(size, *x.shape)

    def _gradient(self, x: Tensor, sigma: Tensor, probes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`∇E`, `(*lead, *event)`, and `∇²E`, `(*lead,)`, or zero without probes."""
        keep, event_dim = torch.is_grad_enabled(), len(self.event_shape)
        laplacian = x.new_zeros(x.shape[: x.dim() - event_dim])
        with torch.enable_grad():
            at = x if keep and x.requires_grad else x.detach().requires_grad_()
            total = self.family.at(sigma)(at).sum()
            (gradient,) = torch.autograd.grad(total, at, create_graph=keep or probes is not None)
            if probes is not None and gradient.requires_grad:  # or else it is linear
                for probe in probes:
                    (product,) = torch.autograd.grad(
                        (gradient * probe).sum(),
                        at,
                        create_graph=keep,
                        retain_graph=True,
                        allow_unused=True,
                        materialize_grads=True,
                    )
                    laplacian = laplacian + sum_rightmost(product * probe, event_dim) / len(probes)
        return (gradient, laplacian) if keep else (gradient.detach(), laplacian.detach())
