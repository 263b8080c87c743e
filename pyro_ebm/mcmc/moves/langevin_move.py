"""Moves by Langevin dynamics with the Metropolis correction, in unconstrained coordinates."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Transform
from torch.distributions.constraints import Constraint

from pyro_ebm._core.gradients import value_and_gradient
from pyro_ebm._core.randomness import normal, uniform
from pyro_ebm._core.shapes import sum_rightmost
from pyro_ebm._core.supports import is_everywhere, unconstraining
from pyro_ebm.mcmc import langevin
from pyro_ebm.mcmc.moves.move import LogDensity, Moved, Start, Tuning

# How far one move's acceptance turns the step size: fast enough to follow learning, slow enough to average over moves.
_GAIN = 0.3


class _At(NamedTuple):
    """Where walkers are, unconstrained, with the log density there, Jacobian included, and its gradient."""

    position: Tensor
    log_density: Tensor
    gradient: Tensor


class LangevinMove:
    """MALA steps of all walkers, with a step size for each element of the batch that follows the acceptance.

    A walker's coordinates are measured in units of the spread that the first walkers had. The step is written for many
    walkers of many dims: what passes over all of their coordinates is what it costs, beside the density.

    Args:
        support: continuous.
        event_shape: the shape of a value.
    """

    usual_steps = 2
    least_acceptance = 0.15  # the step follows the acceptance, and should have found more
    needs_gradient = True

    def __init__(self, support: Constraint, event_shape: Size) -> None:
        self._transform: Transform | None = None
        if not is_everywhere(support):
            self._transform = unconstraining(support, "LangevinMove")
        self._event_dim = len(event_shape)

    def tune(self, value: Tensor) -> Tuning:
        """See `Move`."""
        free = self._free(value)
        spread = free.std(0) if len(free) > 1 else torch.ones_like(free[0])
        lead = free.dim() - 1 - self._event_dim
        scale = torch.where(spread > 0, spread, 1)
        step = langevin.best_log_step_size(Size(scale.shape[lead:]).numel())
        return Tuning(scale.new_full(scale.shape[:lead], step), scale)

    def _free(self, value: Tensor) -> Tensor:
        return value if self._transform is None else self._transform.inv(value)

    def __call__(
        self,
        log_density: LogDensity,
        value: Tensor,
        tuning: Tuning,
        generator: Generator,
        *,
        num_steps: int,
        start: Start | None = None,
    ) -> Moved:
        """See `Move`."""
        with torch.no_grad():
            at = self._first(log_density, value, start)
            step_size = tuning.log_step_size.exp().to(at.position)
            rates = []
            for _ in range(num_steps):
                at, rate = self._step(log_density, at, step_size, tuning.scale, generator)
                rates.append(rate)
            acceptance = torch.stack(rates).mean(0)
            log_step_size = tuning.log_step_size + _GAIN * (acceptance - langevin.TARGET_ACCEPTANCE)
            result, result_log_density = at.position, at.log_density
            if self._transform is not None:
                result = self._transform(at.position)
                jacobian = self._transform.log_abs_det_jacobian(at.position, result)
                result_log_density = result_log_density - sum_rightmost(jacobian, jacobian.dim() - at.log_density.dim())
        return Moved(result, result_log_density, acceptance, Tuning(log_step_size, tuning.scale))

    def _first(self, log_density: LogDensity, value: Tensor, start: Start | None) -> _At:
        position = self._free(value.detach())
        if start is None or self._transform is not None:
            return _At(position, *value_and_gradient(partial(self._at_free, log_density), position))
        return _At(position, start.log_density, start.gradient)

    def _step(
        self, log_density: LogDensity, at: _At, step_size: Tensor, scale: Tensor, generator: Generator
    ) -> tuple[_At, Tensor]:
        """One step of all walkers, and the acceptance rate of each element, `(*batch,)`.

        In units of the scale s the proposal is `x' = x + ε s² ∇u(x) + √(2ε) s ξ`, and the noise that would lead back is
        `-ξ'`, with `ξ' = ξ + √(ε/2) s (∇u(x) + ∇u(x'))`; so `log ratio = u(x') - u(x) + ½ (|ξ|² - |ξ'|²)`.
        """
        dims = self._event_dim
        wide = step_size.reshape(step_size.shape + (1,) * dims)
        noise = normal(at.position.shape, at.position, generator)
        proposal = torch.addcmul(at.position, at.gradient, wide * scale.square())
        proposal.addcmul_(noise, (2 * wide).sqrt() * scale)
        log_prob, gradient = value_and_gradient(partial(self._at_free, log_density), proposal)
        back = torch.addcmul(noise, at.gradient + gradient, (wide / 2).sqrt() * scale)
        log_ratio = log_prob - at.log_density + 0.5 * (_squared_norm(noise, dims) - _squared_norm(back, dims))
        ratio = log_ratio.nan_to_num(nan=-torch.inf).exp().clamp(max=1)
        accepted = uniform(ratio.shape, ratio, generator) < ratio
        chosen = accepted.reshape(accepted.shape + (1,) * dims)
        new = _At(
            torch.where(chosen, proposal, at.position),
            torch.where(accepted, log_prob, at.log_density),
            torch.where(chosen, gradient, at.gradient),
        )
        return new, ratio.mean(0)

    def _at_free(self, log_density: LogDensity, free: Tensor) -> Tensor:
        if self._transform is None:
            return log_density(free)
        value = self._transform(free)
        log_prob = log_density(value)
        jacobian = self._transform.log_abs_det_jacobian(free, value)
        return log_prob + sum_rightmost(jacobian, jacobian.dim() - log_prob.dim())


def _squared_norm(x: Tensor, event_dim: int) -> Tensor:
    """Of the last dims."""
    flat = x.flatten(x.dim() - event_dim) if event_dim else x.unsqueeze(-1)
    squared: Tensor = torch.linalg.vecdot(flat, flat)
    return squared
