"""Pure transitions on a `(chains, dim)` matrix, and what adapts and records them.

A sampler is a module with `State`, `Info`, `Parameters`, `Randomness`, and the functions

- `init(log_density, position, parameters, randomness) -> State`
- `draw_randomness(position, generator) -> Randomness`
- `step(log_density, state, randomness, parameters) -> (State, Info)`.

A step is one *tick* of a finite-state machine: one gradient for every chain. `Info.done` says which chains ended a
transition in this tick; `State.position` then holds their draw. Nothing in a step depends on data in Python, so that it
runs eagerly, traced and compiled alike. Masses are not a sampler's business: see `metric`.
"""

from pyro_ebm._core.gradients import with_gradient
from pyro_ebm.mcmc import hmc, langevin, nuts

__all__ = ["hmc", "langevin", "nuts", "with_gradient"]
