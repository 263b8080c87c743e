"""What a run asks of a sampler: its module's functions, bound to their settings."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from pyro_ebm.mcmc.protocols import Adaptation, Info, Stage, State
from pyro_ebm.mcmc.reach import Learns


@dataclass(frozen=True)
class Algorithm:
    """A sampler with its settings.

    Attributes:
        name: what it is called in results.
        init: `(log_density, position, parameters, randomness) -> State`.
        draw_randomness: `(position, generator) -> Randomness`, for positions `(*ticks, chains, dim)`.
        step: `(log_density, state, randomness, parameters) -> (State, Info)`.
        adaptation: makes what adapts its parameters, of a first step size, `()`, and the number of chains.
        parameters: makes parameters of what adapts, and of where the run is.
        target_accept_prob: what the step size adapts to, if it does.
        usual_ticks: how many ticks a transition takes, until they have been counted.
        num_steps: what a run counts as one transition is so many of this sampler's, of which the last makes a draw.
        learns: what the warm-up raises where draws remember one another for long.
        learns_below: fewer chains than so many do so.
        sticks: whether chains under steps that are too long for where they are stay there, and do not diverge.
        remedy: what helps where transitions diverge.
        structured: whether it asks the log density for more than value and gradient, such as conditionals. That is then
            neither compiled on its own nor tried for a first step size.
        eager: whether its steps run the model in Python, so that they are not compiled.
    """

    name: str
    init: Callable[[Any, Tensor, Any, Any], State]
    draw_randomness: Callable[[Tensor, Generator], Any]
    step: Callable[[Any, Any, Any, Any], tuple[State, Info]]
    adaptation: Callable[[Tensor, int], Adaptation]
    parameters: Callable[[Any, Stage], Any]
    target_accept_prob: float = 1.0
    usual_ticks: float = 4.0
    num_steps: int = 1
    learns: Learns | None = None
    learns_below: float = math.inf
    sticks: bool = False
    remedy: str = "raise target_accept_prob, or reparametrise the model"
    structured: bool = False
    eager: bool = False
