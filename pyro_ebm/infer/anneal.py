"""Simulated annealing: the state of least energy of a discrete graph, or one near it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pyro.infer.autoguide.initialization import init_to_uniform
from torch import Tensor

from pyro_ebm._core.heat_bath import sweep
from pyro_ebm._core.program import EagerProgram, Program, build_program
from pyro_ebm._core.randomness import random_bits, seeded_generator
from pyro_ebm.graphs import FactorGraph
from pyro_ebm.infer.conditional_target import ConditionalDensity, ConditionalTarget
from pyro_ebm.infer.discrete_kernel import MOST_BLOCKS
from pyro_ebm.infer.graph_target import graph_of

# Sweeps at a time, within a bound on their random numbers; and how many are worth compiling.
_MOST_SWEEPS, _MOST_NUMBERS, _WORTH_COMPILING = 256, 2**22, 200


@dataclass(frozen=True, eq=False)
class Annealed:
    """The best that each chain of an annealing has met.

    Attributes:
        values: by variable, `(chains, *batch, *shape)`.
        energy: `(chains,)`, summed over a batch.
    """

    values: dict[str, Tensor]
    energy: Tensor

    @property
    def best(self) -> dict[str, Tensor]:
        """The values of the chain with the least energy, by variable, `(*batch, *shape)`."""
        chain = int(self.energy.argmin())
        return {name: value[chain] for name, value in self.values.items()}


def anneal(
    graph: FactorGraph,
    num_steps: int = 1000,
    *,
    num_chains: int = 1,
    schedule: Literal["geometric", "linear"] = "geometric",
    start: float = 0.1,
    end: float = 10.0,
    init_strategy: Callable[..., Any] = init_to_uniform,
) -> Annealed:
    """Search for the mode of a discrete graph by simulated annealing: block Gibbs sweeps that grow colder.

    A sweep samples `exp(-β E)`, with the inverse temperature β going from `start` to `end`. Where `graph.mode()` is
    affordable, that is exact.

    Args:
        graph: the graph, or an energy over discrete elements that has few joint states.
        num_steps: number of sweeps.
        num_chains: number of searches at once.
        schedule: whether β grows by equal factors or by equal steps.
        start: the first β.
        end: the last β.
        init_strategy: where chains start; see `DiscreteKernel`.

    Returns:
        The best states, and their energies.

    Raises:
        GraphError: if a variable is continuous, or a factor is not local.
        ValueError: if a number is out of range.

    References:
        Kirkpatrick, Gelatt and Vecchi 1983, Optimization by simulated annealing.

    >>> import torch
    >>> from pyro_ebm import FactorGraph, FieldEnergy, IsingEnergy, anneal, spin
    >>> graph = FactorGraph()
    >>> x = graph.variable("x", support=spin, shape=(4,))
    >>> graph.factor(IsingEnergy(torch.tensor([1.0, -2.0, 1.0])), x[:-1], x[1:])
    >>> graph.factor(FieldEnergy(torch.tensor(0.1)), x[:2])
    >>> anneal(graph, 100, num_chains=4).best["x"]
    tensor([ 1.,  1., -1., -1.])
    """
    for name, value in (("num_steps", num_steps), ("num_chains", num_chains)):
        if value < 1:
            raise ValueError(f"anneal: got {name} {value}, expected at least 1.")
    if not 0 < start <= end:
        raise ValueError(f"anneal: got start {start} and end {end}, expected 0 < start <= end.")
    if schedule not in ("geometric", "linear"):
        raise ValueError(f'anneal: got schedule {schedule!r}, expected "geometric" or "linear".')
    target = ConditionalTarget(graph_of(graph, "anneal"), "anneal")
    density: ConditionalDensity = target.log_density  # type: ignore[assignment]
    position = target.initial_points(init_strategy, num_chains)
    generator = seeded_generator(position.device)
    beta = torch.linspace(start, end, num_steps).to(position)
    if schedule == "geometric":
        beta = start * (end / start) ** torch.linspace(0, 1, num_steps).to(position)
    states, lp = density.states(position), density(position)[0].double()
    carry: Any = (states, lp, states, lp)
    at_a_time = max(1, min(_MOST_SWEEPS, _MOST_NUMBERS // position.numel()))
    program: Program | None = None
    for some in beta.split(at_a_time):
        bits = random_bits((len(some), target.num_discrete, num_chains), position.device, generator)
        if program is None:
            program = EagerProgram(partial(_step, density))
            if num_steps >= _WORTH_COMPILING and len(density.blocks) <= MOST_BLOCKS:
                program, _ = build_program(partial(_step, density), carry, (bits[0], some[0]), (), patient=False)
        carry, _ = program(carry, (bits, some), ())
    best = density.layout.position(carry[2])
    return Annealed(target.constrain(best), -density(best)[0])


def _step(density: ConditionalDensity, carry: Any, randomness: Any, _: Any) -> tuple[Any, Any]:
    """A sweep, and what it finds."""
    states, lp, best, best_lp = carry
    bits, beta = randomness
    states, gain = sweep(density.blocks, states, (), bits, beta)
    lp = lp + gain
    better = lp > best_lp
    best = tuple(torch.where(better, new, old) for new, old in zip(states, best, strict=True))
    return (states, lp, best, torch.where(better, lp, best_lp)), lp
