"""Generation by energy minimisation: going downhill."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints
from tqdm.auto import tqdm

from pyro_ebm._core.gradients import value_and_gradient
from pyro_ebm._core.shapes import broadcast, check_energy_shape, leading_shape, sum_rightmost
from pyro_ebm._core.supports import same_support, strip_independent, unconstraining
from pyro_ebm.energies.energy import Energy

# Sufficient decrease (Armijo) and the factor of each backtracking step: Nocedal and Wright 2006, section 3.1.
_SUFFICIENT_DECREASE = 1e-4
_BACKTRACK = 0.5
_MAX_BACKTRACKS = 40
# The farthest that one step moves a coordinate of a constrained support, in log or logit units: a longer one can land
# where the transform is flat, which looks like a minimum.
_REACH = 1.0


class Descent(NamedTuple):
    """The record of a descent.

    Attributes:
        x: where each start ended, `(*lead, *event)`.
        energy: the energy there, `(*lead,)`.
        gradient_norm: the largest absolute gradient there, in unconstrained coordinates, `(*lead,)`.
        converged: whether the gradient fell below the tolerance, `(*lead,)`.
        energies: the energy at the start and after each step, `(num_steps + 1, *lead)`: never increasing.
        path: the positions at the start and after each step, `(num_steps + 1, *lead, *event)`, or `None`.
    """

    x: Tensor
    energy: Tensor
    gradient_norm: Tensor
    converged: Tensor
    energies: Tensor
    path: Tensor | None


def minimize(
    energy: Energy,
    x0: Tensor,
    *,
    num_steps: int = 500,
    tolerance: float | None = None,
    keep_path: bool = False,
    disable_progbar: bool = True,
) -> Descent:
    """Go downhill from every start at once, each with its own step size.

    Gradient descent `x ← x - η ∇E(x)` in unconstrained coordinates, with Barzilai-Borwein step sizes η and
    backtracking, so that no step of any start raises its energy. Starts do not wait for one another; the descent ends
    when all have converged.

    Args:
        energy: an energy over one continuous variable.
        x0: the starts, `(*sample, *batch, *event)`, inside the support.
        num_steps: at most this many steps.
        tolerance: a start has converged when its largest absolute gradient, in unconstrained coordinates, is below
            this: an absolute bound, so mind the energy's scale; by default 1e-6 in float64 and 1e-3 in float32.
        keep_path: whether to record the positions too.
        disable_progbar: hide the progress bar.

    Returns:
        A `Descent`.

    Raises:
        EnergyShapeError: if `x0` does not end in the event shape.
        EnergySupportError: if the support is discrete.
        TypeError: if `x0` is not floating point.
        ValueError: if the energy or its gradient is not finite at a start.

    References:
        Barzilai and Borwein 1988, Two-point step size gradient methods.

    >>> from pyro_ebm import DoubleWell
    >>> minimize(DoubleWell(), torch.tensor([[-0.3], [0.2]])).x.squeeze(-1)
    tensor([-1.0000,  1.0000])
    """
    event_shape = energy.event_shape
    if not x0.is_floating_point():
        raise TypeError(f"minimize: got starts of dtype {x0.dtype}, expected floating point. Pass x0.float().")
    lead = broadcast([leading_shape(x0, event_shape, "minimize"), energy.batch_shape], "minimize")
    x0 = x0.expand(*lead, *event_shape)
    transform = unconstraining(energy.support, "minimize")
    tolerance = tolerance if tolerance is not None else (1e-6 if x0.dtype == torch.float64 else 1e-3)

    def evaluate(u: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_gradient(lambda v: check_energy_shape(energy(transform(v)), lead, "minimize"), u)

    u = transform.inv(x0.detach())
    event_dims = u.dim() - len(lead)
    value, gradient = evaluate(u)
    bad = ~(torch.isfinite(value) & sum_rightmost(torch.isfinite(gradient).logical_not(), event_dims).eq(0))
    if bool(bad.any()):
        raise ValueError(
            f"minimize: got {int(bad.sum())} of {bad.numel()} starts where the energy or its gradient is not finite, "
            "expected all finite. Start inside the support, away from its edge."
        )

    def per_start(v: Tensor) -> Tensor:
        return v.reshape(*lead, *[1] * event_dims)

    def largest(g: Tensor) -> Tensor:
        return g.abs().flatten(len(lead)).amax(-1) if event_dims else g.abs()

    reach = math.inf if same_support(strip_independent(energy.support), constraints.real) else _REACH
    step = (1.0 / largest(gradient).clamp(min=1.0)) * 0.1
    energies, path = [value], [x0.detach()]
    for _ in tqdm(range(num_steps), desc="Descent", disable=disable_progbar):
        active = largest(gradient) > tolerance
        if not bool(active.any()):
            break
        slope = sum_rightmost(gradient.square(), event_dims)
        eta, pending = torch.minimum(step, reach / largest(gradient)), active
        new_u, new_value, new_gradient = u, value, gradient
        for _ in range(_MAX_BACKTRACKS):
            trial = torch.where(per_start(pending), u - per_start(eta) * gradient, new_u)
            trial_value, trial_gradient = evaluate(trial)
            accepted = pending & (trial_value <= value - _SUFFICIENT_DECREASE * eta * slope)
            new_u = torch.where(per_start(accepted), trial, new_u)
            new_value = torch.where(accepted, trial_value, new_value)
            new_gradient = torch.where(per_start(accepted), trial_gradient, new_gradient)
            pending = pending & ~accepted
            if not bool(pending.any()):
                break
            eta = torch.where(pending, eta * _BACKTRACK, eta)
        moved, change = new_u - u, new_gradient - gradient
        curvature = sum_rightmost(moved * change, event_dims)
        length = sum_rightmost(moved.square(), event_dims)
        step = torch.where(curvature > 0, length / curvature.clamp(min=torch.finfo(u.dtype).tiny), 2 * eta)
        u, value, gradient = new_u, new_value, new_gradient
        energies.append(value)
        if keep_path:
            path.append(transform(u))
        if not bool((active & ~pending).any()):  # rounding leaves no step that lowers any energy
            break
    return Descent(
        x=transform(u),
        energy=value,
        gradient_norm=largest(gradient),
        converged=largest(gradient) <= tolerance,
        energies=torch.stack(energies),
        path=torch.stack(path) if keep_path else None,
    )
