"""Has a density changed? Told by the values of its parameters: optimisers may change them behind torch's counters."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_ebm.energies.from_distribution import tensors_of
from pyro_ebm.mcmc.moves import EnergyDensity

Fingerprint = tuple[Tensor, ...]


def fingerprint(density: EnergyDensity) -> Fingerprint:
    """All parameters and buffers of a density's energy and base, as they are: `kept` keeps their values."""
    tensors = [*density.energy.parameters(), *density.energy.buffers()]
    if density.base is not None:
        tensors += tensors_of(density.base)
    return tuple(tensor.detach() for tensor in tensors)


def kept(fingerprint: Fingerprint) -> Fingerprint:
    """A copy, which does not change with the parameters."""
    return tuple(tensor.clone() for tensor in fingerprint)


def same(now: Fingerprint, before: Fingerprint, log_density: Tensor, anchor: Tensor) -> bool:
    """Whether a density is the one that it was.

    Args:
        now: its fingerprint.
        before: that at the anchor.
        log_density: its values at walkers.
        anchor: those at the anchor: what an energy closes over shows in them, up to rounding.
    """
    if len(now) != len(before) or not all(map(torch.equal, now, before)):
        return False
    return close(log_density, anchor)


def close(log_density: Tensor, anchor: Tensor) -> bool:
    """Whether a density at walkers is what it was at the anchor, up to rounding."""
    rounding = 64 * torch.finfo(anchor.dtype).eps * anchor.abs().clamp(min=1)
    return bool(((log_density.detach() - anchor).abs() <= rounding).all())
