"""Isokinetic dynamics, `dx = u dt`, `du = (I - u uᵀ) ∇log π(x) dt / (d - 1)` with `|u| = 1`, and its leapfrog.

The flow leaves `π(x)`, times the uniform density of u on the sphere, invariant. Time is length: a step ε moves a chain
by ε. The dimension d must be two or more.

References:
    Ver Steeg and Galstyan 2021, Hamiltonian dynamics with non-Newtonian momentum for rapid sampling.
    Robnik, De Luca, Silverstein and Seljak 2023, Microcanonical Hamiltonian Monte Carlo.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_ebm._core.protocols import LogDensity

# What `kick` takes and gives: also that of other dynamics.
Kick = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def check_dimension(position: Tensor) -> None:
    """Refuse positions `(chains, dim)` of one dimension.

    Raises:
        ValueError: if `dim` is less than two.
    """
    if position.shape[-1] < 2:
        raise ValueError(
            f"microcanonical dynamics: got dimension {position.shape[-1]}, expected two or more. "
            "A velocity of unit length cannot turn in fewer: use HMC or NUTS."
        )


def _length(vector: Tensor) -> Tensor:
    return vector.square().sum(-1, keepdim=True).sqrt()


def unit(direction: Tensor) -> Tensor:
    """Vectors `(chains, dim)` scaled to unit length."""
    return direction / _length(direction)


def kick(velocity: Tensor, gradient: Tensor, step_size: Tensor) -> tuple[Tensor, Tensor]:
    """Turn every velocity for a time ε, while the gradient g holds.

    With `e = g/|g|` and `δ = ε|g| / (d - 1)`, `u ← (u + e (sinh δ + e·u (cosh δ - 1))) / (cosh δ + e·u sinh δ)`.

    Args:
        velocity: u, of unit length, `(chains, dim)`.
        gradient: of the log density, `(chains, dim)`.
        step_size: ε, `(chains, 1)` or `()`.

    Returns:
        The new velocity, and the change of kinetic energy `(d - 1) log(cosh δ + e·u sinh δ)`, `(chains,)`: minus the
        log of the factor by which the turn scales volume on the sphere.
    """
    stiffness = velocity.shape[-1] - 1
    length = _length(gradient)
    direction = gradient / length.clamp(min=torch.finfo(length.dtype).tiny ** 0.5)
    cosine = (velocity * direction).sum(-1, keepdim=True).clamp(-1, 1)
    angle = step_size * length / stiffness
    # The formula times 2 exp(-δ): no exponential overflows. Where a velocity is so straight against the gradient that
    # rounding hides how far it turns, its energy is overestimated, and the step rejected.
    decay, resolution = (-angle).exp(), torch.finfo(angle.dtype).eps
    against = (1 - cosine) * decay.square().clamp(min=resolution**2)
    turned = 2 * decay * (velocity - cosine * direction) + (1 + cosine - against) * direction
    kinetic = stiffness * (angle + (0.5 * (1 - cosine) * (-2 * angle).expm1()).clamp(min=resolution - 1).log1p())
    return unit(turned), kinetic.squeeze(-1)


def isokinetic_leapfrog(
    log_density: LogDensity,
    position: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    step_size: Tensor,
    kick: Kick = kick,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Half a kick, a move `x ← x + εu`, half a kick, of every chain.

    Args:
        log_density: the log density with its gradient.
        position: x, `(chains, dim)`.
        velocity: u, `(chains, dim)`; of unit length, if the kick is `kick`.
        gradient: of the log density at `position`, `(chains, dim)`.
        step_size: ε, `(chains, 1)` or `()`.
        kick: turns velocities, as `kick` does.

    Returns:
        The new position, velocity, log density `(chains,)` and gradient, and the change of kinetic energy `(chains,)`.
    """
    half, first_kinetic = kick(velocity, gradient, 0.5 * step_size)
    new_position = position + step_size * half
    value, new_gradient = log_density(new_position)
    new_velocity, last_kinetic = kick(half, new_gradient, 0.5 * step_size)
    return new_position, new_velocity, value, new_gradient, first_kinetic + last_kinetic
