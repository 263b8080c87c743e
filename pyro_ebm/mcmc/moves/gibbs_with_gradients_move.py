"""Moves by Gibbs with gradients: changes of single elements of any differentiable energy with finitely many states."""

from __future__ import annotations

import torch
from torch import Generator, Size, Tensor
from torch.distributions.constraints import Constraint

from pyro_ebm._core.errors import EnergySupportError
from pyro_ebm._core.gradients import value_and_gradient
from pyro_ebm._core.supports import state_range
from pyro_ebm.mcmc import changes, gibbs_with_gradients
from pyro_ebm.mcmc.metric import DiagonalMetric, Whitened
from pyro_ebm.mcmc.moves.move import LogDensity, Moved, Start, Tuning

_MOST_STEPS = 50


class GibbsWithGradientsMove:
    """Steps of Gibbs with gradients of all walkers: each changes one element, or none.

    Args:
        support: finite, elementwise.
        event_shape: the shape of a value.

    Raises:
        EnergySupportError: if the support is not finite.
    """

    needs_gradient = True
    least_acceptance = 0.01  # there is no step to adapt: a sure density refuses most changes, as it should

    def __init__(self, support: Constraint, event_shape: Size) -> None:
        found = state_range(support)
        if found is None:
            raise EnergySupportError(
                f"got the discrete support {support}, expected boolean, spin or an integer interval: no move is known "
                "for it. Give walkers of your own, or an energy with a gibbs_step."
            )
        self._range, self._event_dim = found, len(event_shape)
        self.usual_steps = min(_MOST_STEPS, event_shape.numel())

    def tune(self, value: Tensor) -> Tuning:
        """See `Move`: there is nothing to tune."""
        return untuned(value)

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
        lead = value.shape[: value.dim() - self._event_dim]
        position = value.reshape(lead.numel(), -1)
        target = _GradientChanges(log_density, value.shape, self._range, position)
        whitened = Whitened(DiagonalMetric(torch.ones_like(position[0])), target)
        if start is None:
            state = changes.State(position, *target.changes(position))
        else:
            gains = target.gains(position, start.gradient.reshape(position.shape))
            state = changes.State(position, start.log_density.flatten(), gains)
        rates = []
        for _ in range(num_steps):
            randomness = gibbs_with_gradients.draw_randomness(position, generator)
            state, info = gibbs_with_gradients.step(whitened, state, randomness, gibbs_with_gradients.Parameters())
            rates.append(info.acceptance_rate)
        acceptance = torch.stack(rates).mean(0).reshape(lead).mean(0)
        return Moved(state.position.reshape(value.shape), state.log_density.reshape(lead), acceptance, tuning)


def untuned(value: Tensor) -> Tuning:
    """The tuning of moves that have none."""
    none = torch.zeros((), device=value.device)
    return Tuning(none, none + 1)


class _GradientChanges:
    """A density with the gains of single changes, estimated by its gradient: `Changes` for samplers."""

    def __init__(self, log_density: LogDensity, shape: Size, found: tuple[int, int, int], like: Tensor) -> None:
        self._log_density, self._shape = log_density, shape
        low, spacing, count = found
        ones = torch.ones_like(like[0])
        self.low, self.spacing, self.num_states = low * ones, spacing * ones, count * ones
        self.num_alternatives = 1 if count == 2 else count

    def __call__(self, position: Tensor, /) -> tuple[Tensor, Tensor]:
        """Log density and gradient, `(chains, dim)` to `(chains,)` and `(chains, dim)`."""
        return value_and_gradient(lambda x: self._log_density(x.reshape(self._shape)).flatten(), position)

    def changes(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """The log density `(chains,)` at `(chains, dim)`, and gains `(chains, dim, alternatives)`."""
        value, gradient = self(position)
        return value, self.gains(position, gradient)

    def gains(self, position: Tensor, gradient: Tensor) -> Tensor:
        """Gains `(chains, dim, alternatives)` at `(chains, dim)`, of the gradient there."""
        return changes.distances(self, position) * gradient.unsqueeze(-1)
