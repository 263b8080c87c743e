"""A factor graph among the sites of a Pyro model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import pyro
import torch
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_ebm._core.dtypes import like_of
from pyro_ebm._core.errors import GraphError
from pyro_ebm.distributions.factor import declare_factor
from pyro_ebm.distributions.flat_site import FlatSite
from pyro_ebm.distributions.graph_prior import GraphPrior
from pyro_ebm.graphs import Factor, FactorGraph, Variable
from pyro_ebm.graphs.lookup import lookup


def sample_graph(
    name: str, graph: FactorGraph, obs: Tensor | Mapping[str, Tensor] | None = None, *, normalized: bool = False
) -> dict[str, Any]:
    """Open the variables of a factor graph as sites of a model: the joint density is multiplied by `exp(-E(...))`.

    A variable x is the site `"name.x"`. An array of discrete variables that is not observed has a site for each
    element, `"name.x[0,2]"`, which inference can sum out one by one: `MCMC(NUTS(model))` of this package for as many
    as the treewidth allows, Pyro's `config_enumerate` for some tens. Each group of factors is a factor,
    `"name.factor_0"` and so on, with one for each scope, `"name.factor_0[3]"`, where such elements are concerned.

    Args:
        name: the name, unique in the model.
        graph: the graph; its batch dims line up with the enclosing plates.
        obs: observed values by variable, `(*batch, *shape)`; a tensor for a graph of one variable. `pyro.condition`
            does the same by the sites' names, those of whole variables or of elements.
        normalized: whether log Z is taken off, by `graph.log_partition()` with its gradient, as the factor
            `"name.log_partition"`. It must be where the energy depends on what is learned or sampled. It is exact, and
            what is observed does not change it.

    Returns:
        By variable its value, `(*batch, *shape)`; of discrete arrays with a site for each element, a NumPy array of
        these elements' tensors, indexed likewise: `values["x"][0, 2]`.

    Raises:
        GraphError: if `obs` names no variable of the graph, or if the graph cannot be drawn from where Pyro asks for
            draws from the prior.
        TreewidthError: if log Z is wanted, and cannot be computed exactly.
        UnnormalizedError: under inference, if without log Z the energy depends on learned or sampled tensors.

    >>> import pyro.distributions as dist
    >>> from pyro_ebm import PottsEnergy
    >>> g = FactorGraph()
    >>> x = g.variable("x", num_states=2, shape=(3,))
    >>> g.factor(PottsEnergy(torch.tensor(1.0)), x[:-1], x[1:])
    >>> def model(y):
    ...     labels = sample_graph("field", g)["x"]
    ...     for i, label in enumerate(labels):
    ...         pyro.sample(f"y{i}", dist.Normal(label.float(), 0.5), obs=y[i])
    >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(3))
    >>> [site for site in trace.nodes if site.startswith("field.")]
    ['field.x[0]', 'field.x[1]', 'field.x[2]', 'field.factor_0[0]', 'field.factor_0[1]']
    """
    observed = _observed(graph, obs)
    prior, like = GraphPrior(graph), like_of(graph).detach()
    values: dict[str, Any] = {}
    for variable in graph.variables.values():
        site = f"{name}.{variable.name}"
        given = observed.get(variable.name, _conditioned(site))
        by_element = given is None and variable.num_states is not None and len(variable.shape) > 0
        indices = list(np.ndindex(*variable.shape)) if by_element else [None]
        elements = np.empty(variable.shape, dtype=object)
        for index in indices:
            fn = FlatSite(
                variable,
                torch.Size() if by_element else variable.shape,
                graph.batch_shape,
                partial(prior.draw, variable.name, index),
                like,
            )
            where = site if index is None else f"{site}[{','.join(map(str, index))}]"
            infer = {} if index is None else {"element_of": (site, variable.shape)}
            value = pyro.sample(where, fn, obs=given, infer=infer)
            prior.see(variable.name, index, value)
            if index is None:
                values[variable.name] = value
            else:
                elements[index] = value
        if by_element:
            values[variable.name] = elements
    for where, energy, arguments in _energies(name, graph, values):
        if normalized:
            pyro.factor(where, -energy)
        else:
            declare_factor(where, energy, arguments)
    if normalized:
        pyro.factor(f"{name}.log_partition", -graph.log_partition())
    return values


def _observed(graph: FactorGraph, obs: Tensor | Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    if obs is None:
        return {}
    if isinstance(obs, Tensor):
        if len(graph.variables) != 1:
            raise GraphError(
                f"sample_graph: got a tensor as obs, expected a mapping from some of {list(graph.variables)}."
            )
        return dict.fromkeys(graph.variables, obs)
    unknown = obs.keys() - graph.variables.keys()
    if unknown:
        raise GraphError(f"sample_graph: got obs for {sorted(unknown)}, expected some of {list(graph.variables)}.")
    return obs


def _conditioned(site: str) -> Tensor | None:
    """The value that `pyro.condition` has for a site, which decides what sites there are."""
    for handler in _PYRO_STACK:
        if isinstance(handler, ConditionMessenger) and site in handler.data:
            found = handler.data[site] if isinstance(handler.data, dict) else handler.data.nodes[site]["value"]
            return cast(Tensor | None, found)
    return None


def _energies(
    name: str, graph: FactorGraph, values: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor, tuple[Tensor, ...]]]:
    """The factors: what each is called, its energy, and the values of sites that this is a function of."""
    whole = {each: value for each, value in values.items() if isinstance(value, Tensor)}
    if len(whole) == len(values):
        shapes = {each: variable.shape for each, variable in graph.variables.items()}
        for number, factor in enumerate(graph.factors):
            arguments = tuple(whole[each] for each in cast(Factor, factor).names)
            yield f"{name}.factor_{number}", factor(whole, shapes), arguments
        return
    left = graph.condition(whole) if whole else graph
    tables = left.log_tables()
    states = [state for variable in left.variables.values() for state in _states(variable, values[variable.name])]
    for number, group in enumerate(tables.groups):
        scopes = group.scopes.tolist()
        for row, scope in enumerate(scopes):
            dim = -group.arity - 1
            table = group.log_potentials.select(dim, row if group.log_potentials.shape[dim] > 1 else 0)
            where = f"{name}.factor_{number}" + (f"[{row}]" if len(scopes) > 1 else "")
            yield where, -lookup(table, *(states[element] for element in scope)), tuple(whole.values())


def _states(variable: Variable, elements: np.ndarray) -> list[Tensor]:
    return [variable.states(value) for value in elements.flat]
