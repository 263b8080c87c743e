"""Hamiltonian Monte Carlo for Pyro models, many chains in one program."""

import math
from dataclasses import dataclass, field

from pyro_ebm.infer.kernel import AdaptiveKernel
from pyro_ebm.mcmc.algorithm import Algorithm
from pyro_ebm.mcmc.hamiltonian_algorithms import hmc_algorithm


@dataclass(eq=False)
class HMC(AdaptiveKernel):
    """Hamiltonian Monte Carlo with a trajectory length that is jittered, so that no period of the target is missed.

    Args:
        model: and the other arguments that every `AdaptiveKernel` takes.
        trajectory_length: mean integration time, in units of the metric; each trajectory's is uniform between zero and
            twice that. By default π/2, a quarter period of a standard normal, or as much more as the warm-up finds that
            a chain needs to forget where it was, up to 4π. Early in a warm-up that adapts step size and mass matrix, no
            trajectory of a given length has more than 64 steps.
        num_steps: the exact number of leapfrog steps instead, without jitter.

    References:
        Neal 2011, MCMC using Hamiltonian dynamics.
    """

    trajectory_length: float | None = field(default=None, kw_only=True)
    num_steps: int | None = field(default=None, kw_only=True)

    def check(self) -> None:
        """Check the arguments of this kernel's own."""
        self._require(
            "trajectory_length", self.trajectory_length is None or self.trajectory_length > 0, "a positive number"
        )
        self._require("num_steps", self.num_steps is None or self.num_steps >= 1, "at least 1")

    def algorithm(self) -> Algorithm:
        """The sampler with its settings."""
        return hmc_algorithm(
            trajectory_length=self.trajectory_length or math.pi / 2,
            num_steps=self.num_steps,
            target_accept_prob=self.target_accept_prob,
            learns="trajectory_length" if self.trajectory_length is None and self.num_steps is None else None,
        )
