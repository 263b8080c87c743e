"""Where walkers must not be used: programs that would freeze them, and potentials that they would make noisy."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_ebm._core.errors import CompiledWalkersError, StochasticPotentialError
from pyro_ebm.distributions._caller import ScoredSite
from pyro_ebm.distributions._legality import dependencies


def refuse_compilation() -> None:
    """Raise in a program that is being traced or compiled.

    Raises:
        CompiledWalkersError: there.
    """
    if torch._C._get_tracing_state() is not None or torch.compiler.is_compiling():
        raise CompiledWalkersError(
            "got walkers in a program that is being compiled (a Jit ELBO, jit_compile=True, torch.compile), expected "
            "an eager one: it would hold them where they are now, for ever. Use the ELBO without Jit."
        )


def check_potential(log_density: Tensor, site: ScoredSite | None) -> None:
    """Raise where MCMC moves what the energy of walkers that are not frozen depends on.

    Args:
        log_density: at the walkers, with its graph.
        site: what Pyro is scoring.

    Raises:
        StochasticPotentialError: there.
    """
    if site is None or site.moved is None or not log_density.requires_grad:
        return
    moved = dependencies(log_density, (), site)
    if moved:
        raise StochasticPotentialError(
            f'at site "{site.name}": got an energy with {len(moved)} parameter(s) that MCMC samples, and walkers that '
            "are not frozen, expected log Z as a fixed function of them. Ways out: log_normalizer=Exact(); or walkers "
            "that have learned where the posterior is, then walkers.freeze()."
        )
