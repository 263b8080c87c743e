"""Moves by Langevin dynamics with the Metropolis correction, in unconstrained coordinates."""

from __future__ import annotations

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Transform
from torch.distributions.constraints import Constraint

from pyro_ebm._core.gradients import value_and_gradient
from pyro_ebm._core.shapes import sum_rightmost
from pyro_ebm._core.supports import is_everywhere, unconstraining
from pyro_ebm.mcmc import langevin
from pyro_ebm.mcmc.moves.move import LogDensity, Moved, Start, Tuning

# The acceptance that is best for many dims: Roberts and Rosenthal 1998.
_TARGET_ACCEPTANCE = 0.574
# How far one move's acceptance turns the step size: fast enough to follow learning, slow enough to average over moves.
_GAIN = 0.3


class LangevinMove:
    """MALA steps of all walkers, with a step size for each element of the batch that follows the acceptance.

    A walker's coordinates are measured in units of the spread that the first walkers had.

    Args:
        support: continuous.
        event_shape: the shape of a value.
    """

    usual_steps = 2
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
        dim = max(1, Size(scale.shape[lead:]).numel())
        # ε = ½ (1.65 d^(-1/6))² is the optimum for standard normal coordinates.
        step = torch.tensor(0.5 * 1.65**2 * dim ** (-1 / 3)).log()
        return Tuning(scale.new_zeros(scale.shape[:lead]) + step.to(scale), scale)

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
        scale = tuning.scale
        free = self._free(value) / scale
        lead = free.shape[: free.dim() - self._event_dim]
        position = free.reshape(lead.numel(), -1)

        def whitened(q: Tensor) -> tuple[Tensor, Tensor]:
            return value_and_gradient(lambda x: self._at_free(log_density, x.reshape(free.shape) * scale).flatten(), q)

        parameters = langevin.Parameters(
            tuning.log_step_size.exp().to(position).expand(lead).flatten(),
            torch.ones((), dtype=torch.bool, device=position.device),
        )
        if start is None or self._transform is not None:
            state = langevin.State(position, *whitened(position))
        else:
            gradient = (start.gradient * scale).reshape(position.shape)
            state = langevin.State(position, start.log_density.flatten(), gradient)
        rates = []
        for _ in range(num_steps):
            randomness = langevin.draw_randomness(position, generator)
            state, info = langevin.step(whitened, state, randomness, parameters)
            rates.append(info.acceptance_rate)
        moved = state.position.reshape(free.shape) * scale
        result, value_log_density = moved, state.log_density.reshape(lead)
        if self._transform is not None:
            result = self._transform(moved)
            jacobian = self._transform.log_abs_det_jacobian(moved, result)
            value_log_density = value_log_density - sum_rightmost(jacobian, jacobian.dim() - len(lead))
        acceptance = torch.stack(rates).mean(0).reshape(lead).mean(0)
        step = tuning.log_step_size + _GAIN * (acceptance - _TARGET_ACCEPTANCE)
        return Moved(result, value_log_density, acceptance, Tuning(step, scale))

    def _at_free(self, log_density: LogDensity, free: Tensor) -> Tensor:
        if self._transform is None:
            return log_density(free)
        value = self._transform(free)
        log_prob = log_density(value)
        jacobian = self._transform.log_abs_det_jacobian(free, value)
        return log_prob + sum_rightmost(jacobian, jacobian.dim() - log_prob.dim())
