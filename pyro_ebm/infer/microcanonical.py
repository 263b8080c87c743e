"""Microcanonical samplers for Pyro models: with the Metropolis correction, and without."""

import math
from dataclasses import dataclass, field

from pyro_ebm.infer.kernel import AdaptiveKernel
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.hamiltonian_algorithms import adjusted_mclmc_algorithm, mclmc_algorithm


@dataclass(eq=False)
class MCLMC(AdaptiveKernel):
    """Microcanonical Langevin Monte Carlo: a chain of constant speed, unadjusted, one gradient for each draw.

    Every move is made, so that draws have a bias that shrinks with the step size: `acceptance_rate` in the diagnostics
    is what a correction would have accepted, and the closer to one, the smaller the bias. Use `AdjustedMCLMC` for
    exact draws. The model must have two dimensions or more.

    Args:
        model: and the other arguments that every `AdaptiveKernel` takes.
        decoherence_length: the length after which the direction is forgotten, in units of `√dim`, the size of a
            standard normal in the coordinates of the metric.

    References:
        Robnik, De Luca, Silverstein and Seljak 2023, Microcanonical Hamiltonian Monte Carlo.
        Robnik and Seljak 2024, Fluctuation without dissipation: microcanonical Langevin Monte Carlo.
    """

    decoherence_length: float = field(default=1.0, kw_only=True)
    target_accept_prob: float = field(default=0.95, kw_only=True)

    def check(self) -> None:
        """Check the arguments of this kernel's own."""
        self._require("decoherence_length", self.decoherence_length > 0, "a positive number")

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return mclmc_algorithm(decoherence_length=self.decoherence_length, target_accept_prob=self.target_accept_prob)


@dataclass(eq=False)
class AdjustedMCLMC(AdaptiveKernel):
    """Microcanonical dynamics in trajectories of jittered length, accepted or rejected: exact.

    The model must have two dimensions or more. Early in a warm-up that adapts step size and mass matrix, on the way to
    the bulk, chains follow Hamiltonian dynamics, in trajectories of at most 64 steps.

    Args:
        model: and the other arguments that every `AdaptiveKernel` takes.
        trajectory_length: mean length of a trajectory, in units of `√dim`, the size of a standard normal in the
            coordinates of the metric. By default π/2, or as much more as the warm-up finds that a chain needs to forget
            where it was, up to 4π.
        target_accept_prob: as for every `AdaptiveKernel`; 0.9 is faster where the density is near normal, but chains
            may stay for long where it narrows.

    References:
        Robnik, Cohn-Gordon and Seljak 2025, Metropolis adjusted microcanonical Hamiltonian Monte Carlo.
    """

    trajectory_length: float | None = field(default=None, kw_only=True)
    target_accept_prob: float = field(default=0.95, kw_only=True)

    def check(self) -> None:
        """Check the arguments of this kernel's own."""
        self._require(
            "trajectory_length", self.trajectory_length is None or self.trajectory_length > 0, "a positive number"
        )

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return adjusted_mclmc_algorithm(
            trajectory_length=self.trajectory_length or math.pi / 2,
            target_accept_prob=self.target_accept_prob,
            learns="trajectory_length" if self.trajectory_length is None else None,
        )
