"""The leapfrog integrator of Hamilton's equations with unit masses."""

import torch
from torch import Tensor

from pyro_ebm._core.protocols import LogDensity

# Beyond this energy error a trajectory has left the level set: Betancourt 2017, section 6.2, and Stan's value.
MAX_ENERGY_ERROR = 1000.0


def leapfrog(
    log_density: LogDensity, position: Tensor, momentum: Tensor, gradient: Tensor, step_size: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One leapfrog step `p ← p + ½ε∇log π(q); q ← q + εp; p ← p + ½ε∇log π(q)` of every chain.

    Args:
        log_density: the log density with its gradient.
        position: q, `(chains, dim)`.
        momentum: p, `(chains, dim)`.
        gradient: of the log density at `position`, `(chains, dim)`.
        step_size: the signed step ε, `(chains, 1)` or `()`.

    Returns:
        The new position, momentum, log density `(chains,)` and gradient.
    """
    half = momentum + 0.5 * step_size * gradient
    new_position = position + step_size * half
    value, new_gradient = log_density(new_position)
    return new_position, half + 0.5 * step_size * new_gradient, value, new_gradient


def hamiltonian(log_density: Tensor, momentum: Tensor) -> Tensor:
    """The total energy `H = -log π(q) + ½ |p|²`, `(chains,)`."""
    return 0.5 * momentum.square().sum(-1) - log_density


def energy_error(energy: Tensor, initial_energy: Tensor, gradient: Tensor) -> Tensor:
    """`H - H₀`, `(chains,)`; infinite where the energy or its gradient is not finite."""
    error = energy - initial_energy
    return torch.where(torch.isfinite(error) & torch.isfinite(gradient).all(-1), error, torch.inf)


def column(step_size: Tensor) -> Tensor:
    """A step size `()` or `(chains,)`, to be multiplied with `(chains, dim)`."""
    return step_size.unsqueeze(-1) if step_size.dim() else step_size


def choose(mask: Tensor, chosen: Tensor, otherwise: Tensor) -> Tensor:
    """`chosen` for the chains in `mask` `(chains,)`, else `otherwise`; each `(chains,)`, `(chains, dim)` or `()`."""
    return torch.where(mask.unsqueeze(-1) if max(chosen.dim(), otherwise.dim()) == 2 else mask, chosen, otherwise)
