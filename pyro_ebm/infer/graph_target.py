"""A factor graph as a target: discrete variables as they are, continuous ones in unconstrained coordinates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_feasible, init_to_uniform, init_to_value
from torch import Size, Tensor

from pyro_ebm._core.errors import GraphError, InitializationError
from pyro_ebm._core.gradients import value_alone, value_and_gradient
from pyro_ebm._core.ravel import Raveler
from pyro_ebm._core.shapes import sum_rightmost
from pyro_ebm._core.supports import state_range, strip_independent, unconstraining
from pyro_ebm.distributions import EnergyDistribution
from pyro_ebm.energies import DistributionEnergy, Energy
from pyro_ebm.graphs import FactorGraph, Variable
from pyro_ebm.infer.energy_target import SITE
from pyro_ebm.infer.initial_points import MAX_TRIES, is_finite
from pyro_ebm.infer.structure import LatentSite, Structure, floating_like
from pyro_ebm.mcmc.minibatch import Subsample


def graph_of(model: object, kernel: str) -> FactorGraph:
    """The model of a kernel over discrete variables: a graph, or an energy or its distribution, as a graph of one.

    Raises:
        TypeError: if it is none of these, or not discrete at all.
    """
    if isinstance(model, FactorGraph):
        graph = model
    elif isinstance(model, (Energy, EnergyDistribution)):
        graph = _graph_over_one(model)
    else:
        raise TypeError(
            f"{kernel}: got a {type(model).__name__}, expected a FactorGraph, or an Energy or EnergyDistribution over "
            "a discrete support. For a Pyro model use NUTS, which sums its discrete sites out."
        )
    if not any(variable.num_states for variable in graph.variables.values()):
        raise TypeError(
            f"{kernel}: got no discrete variable, expected one: boolean, spin or integers of an interval. Use NUTS."
        )
    return graph


def _graph_over_one(model: Energy | EnergyDistribution) -> FactorGraph:
    graph = FactorGraph()
    energies = [model] if isinstance(model, Energy) else [model.energy]
    if isinstance(model, EnergyDistribution) and model.base is not None:
        energies.append(DistributionEnergy(model.base))
    if energies[0].num_variables != 1:
        raise TypeError(f"got an energy over {energies[0].num_variables} variables, expected one, or a FactorGraph.")
    shape = model.event_shape if isinstance(model, EnergyDistribution) else model.event_shapes[0]
    x = graph.variable(SITE, support=strip_independent(model.support), shape=shape)
    for each in energies:
        graph.factor(each, x)
    return graph


class GraphTarget:
    """The density of a graph's variables: first the discrete ones, by value, then the continuous, unconstrained.

    A batch of graphs is sampled jointly: each variable has shape `(*batch, *shape)`.

    Args:
        graph: the graph.

    Attributes:
        graph: the graph.
        num_discrete: how many of the position's dims are discrete elements.
        low: the lowest value of each of them, `(num_discrete,)`.
        spacing: the distance of its values, likewise.
        num_states: the number of its values, likewise.
    """

    concern: str | None = None
    subsamples: tuple[Subsample, ...] = ()

    def __init__(self, graph: FactorGraph) -> None:
        self.graph = graph
        variables = graph.variables
        self.discrete = [name for name, variable in variables.items() if variable.num_states]
        self.continuous = [name for name in variables if name not in self.discrete]
        parameter = floating_like(graph)
        batch = graph.batch_shape
        self._transforms = {name: unconstraining(variables[name].support, name) for name in self.continuous}
        sites: dict[str, LatentSite] = {}
        for name in (*self.discrete, *self.continuous):
            shape = batch + variables[name].shape
            free = shape if name in self.discrete else self._transforms[name].inverse_shape(shape)
            dtype = variables[name].values(torch.zeros(1).long()).dtype if name in self.discrete else parameter.dtype
            dims = (None,) * len(batch)
            sites[name] = LatentSite(shape, Size(free), variables[name].support, dtype, parameter.device, dims)
        self.structure = Structure(latents=sites)
        self.raveler = Raveler({name: site.unconstrained_shape for name, site in sites.items()})
        self.like = parameter.detach().new_zeros(self.raveler.dim)
        ranges = [(state_range(variables[name].support), sites[name].shape.numel()) for name in self.discrete]
        columns = zip(*(found for found, count in ranges if found for _ in range(count)), strict=True)
        self.low, self.spacing, self.num_states = (self.like.new_tensor(column) for column in columns)
        self.num_discrete = len(self.low)
        self.like = torch.cat([self.low, self.like[self.num_discrete :]])  # where the graph has a density

    def values(self, position: Tensor) -> dict[str, Tensor]:
        """A position `(*lead, dim)` as values by variable, `(*lead, *batch, *shape)`, as its energies take them."""
        free = self.raveler.unravel(position)
        return {
            name: self._labels(name, free[name]) if name in self.discrete else self._transforms[name](free[name])
            for name in self.graph.variables
        }

    def _labels(self, name: str, value: Tensor) -> Tensor:
        return value if self.structure.latents[name].dtype.is_floating_point else value.long()

    def log_joint(self, position: Tensor) -> Tensor:
        """The log density `(chains,)` at `(chains, dim)`, with the Jacobians of continuous variables."""
        values = self.values(position)
        energy = self.graph(values)
        total = -sum_rightmost(energy, energy.dim() - 1)
        free = self.raveler.unravel(position)
        for name, transform in self._transforms.items():
            jacobian = transform.log_abs_det_jacobian(free[name], values[name])
            total = total + sum_rightmost(jacobian, jacobian.dim() - 1)
        return total

    def log_density(self, position: Tensor, /) -> tuple[Tensor, Tensor]:
        """Log density `(chains,)`, and its gradient `(chains, dim)` in the continuous variables, zero elsewhere."""
        return (value_and_gradient if self.continuous else value_alone)(self.log_joint, position)

    def constrain(self, position: Tensor) -> dict[str, Tensor]:
        """A position `(*lead, dim)` to values by variable, `(*lead, *batch, *shape)`: labels as integers."""
        return self.values(position)

    def initial_points(self, strategy: Callable[..., Any], num_chains: int) -> Tensor:
        """A start for each chain: uniform, or at given values, `(chains, dim)`.

        Raises:
            InitializationError: if no start of positive density is found, or the strategy is of another kind.
        """
        function = strategy.func if isinstance(strategy, functools.partial) else strategy
        keywords = strategy.keywords if isinstance(strategy, functools.partial) else {}
        given: Mapping[str, Tensor] = {}
        if function is init_to_value:
            given = keywords.get("values", {})
        elif function not in (init_to_uniform, init_to_feasible):
            raise InitializationError(
                f"got init_strategy {getattr(function, '__name__', function)}, expected init_to_uniform, "
                "init_to_feasible or init_to_value(values=...) for a factor graph."
            )
        fixed = self._given(given)

        def draw(count: int) -> Tensor:
            if function is init_to_feasible:
                noise = self.like.new_full((count, len(self.like)), 0.5)
                noise[:, : self.num_discrete] = 0
            else:
                noise = torch.rand(count, len(self.like), dtype=self.like.dtype).to(self.like.device)
            state = (noise[:, : self.num_discrete] * self.num_states).floor().clamp(max=self.num_states - 1)
            spread = keywords.get("radius", 2.0) * (2 * noise[:, self.num_discrete :] - 1)
            free = torch.cat([self.low + self.spacing * state, spread], -1)
            return torch.where(fixed.isnan(), free, fixed)

        position = draw(num_chains)
        for _ in range(MAX_TRIES):
            bad = ~is_finite(self.log_density, position)
            if not bool(bad.any()):
                return position
            position = position.masked_scatter(bad.unsqueeze(-1), draw(int(bad.sum())))
        raise InitializationError(
            f"got no start of positive density for {int(bad.sum())} of {num_chains} chains in {MAX_TRIES} tries. Some "
            "states are forbidden: give a start that is not, with init_strategy=init_to_value(values=...), say "
            "from graph.mode()."
        )

    def _given(self, values: Mapping[str, Tensor]) -> Tensor:
        """Given values as a position `(dim,)`, NaN where none is given."""
        unknown = set(values) - set(self.raveler.shapes)
        if unknown:
            raise InitializationError(
                f"got values for {sorted(unknown)}, expected some of {list(self.raveler.shapes)}."
            )
        parts = {}
        for name, site in self.structure.latents.items():
            parts[name] = self.like.new_full(site.unconstrained_shape, torch.nan)
            if name in values:
                variable: Variable = self.graph[name]
                value = torch.as_tensor(values[name], device=self.like.device).expand(site.shape)
                if name in self.discrete:
                    value = variable.values(variable.states(value))
                parts[name] = (value if name in self.discrete else self._transforms[name].inv(value)).to(self.like)
        return self.raveler.ravel(parts)

    def sample_discrete(self, position: Tensor) -> dict[str, Tensor]:
        """Nothing: discrete variables are sampled, not summed out."""
        return {}

    def pointwise(self, values: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Nothing: there are no data and no deterministic sites."""
        return {}, {}


def require_discrete(target: GraphTarget, kernel: str) -> None:
    """Raise where a graph has continuous variables.

    Raises:
        GraphError: if it has.
    """
    if target.continuous:
        raise GraphError(
            f'{kernel}: got the continuous variable "{target.continuous[0]}", expected discrete ones alone. Use '
            f"Mixed(graph), or condition on it: graph.condition({target.continuous[0]}=...)."
        )
