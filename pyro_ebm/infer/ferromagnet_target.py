"""A graph of equal-loving pairs without fields as a target: what cluster samplers ask for."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_ebm._core.errors import GraphError
from pyro_ebm.graphs import FactorGraph
from pyro_ebm.graphs.gibbs.blocks import unbatched
from pyro_ebm.graphs.tables import LogTables, TableGroup
from pyro_ebm.infer.graph_target import GraphTarget, require_discrete

# What rounding may do to tables that are equal.
_ROUNDING = 1e-5


class FerromagnetDensity:
    """The log density of a target that is `Σ_e J_e [x_i = x_j] + constant` with `J_e ≥ 0`: `Ferromagnet` for samplers.

    Args:
        target: the target.
        tables: of its graph, without batch.

    Raises:
        GraphError: if there is a field, another kind of factor, or a negative J.
    """

    def __init__(self, target: GraphTarget, tables: LogTables) -> None:
        self._target = target
        self.low, self.spacing = target.low, target.spacing
        kinds = set(tables.num_states)
        if len(kinds) > 1:
            raise _error(f"elements with {sorted(kinds)} states", "the same number for all")
        (self.num_alternatives,) = kinds
        for group in tables.groups:
            if group.arity == 1:
                _require_no_field(group)
        parts = [_couplings(group) for group in tables.groups if group.arity > 1]
        device = target.like.device
        self.edges = torch.cat([torch.empty(0, 2, dtype=torch.long), *(scopes for scopes, _ in parts)]).to(device)
        self.coupling = torch.cat([target.like[:0], *(coupling.to(target.like) for _, coupling in parts)])

    def __call__(self, position: Tensor, /) -> tuple[Tensor, Tensor]:
        """Log density, and no gradient, `(chains, dim)` to `(chains,)` and `(chains, dim)`."""
        return GraphTarget.log_density(self._target, position)


def _error(got: str, expected: str) -> GraphError:
    return GraphError(f"SwendsenWang: got {got}, expected {expected}. Use Gibbs(graph).")


def _require_no_field(group: TableGroup) -> None:
    """Check that factors over single elements tell none of their states apart."""
    table = group.log_potentials
    if bool((table.amax(-1) - table.amin(-1) > _ROUNDING).any()):
        raise _error("a field", "none: a cluster's states must be equally probable")


def _couplings(group: TableGroup) -> tuple[Tensor, Tensor]:
    scopes, table = group.scopes, group.log_potentials.detach()
    if group.arity != 2:
        raise _error(f"a factor over {group.arity} elements", "factors over pairs")
    size = table.shape[-1]
    equal = torch.eye(size, dtype=torch.bool, device=table.device)
    same, different = table[:, equal], table[:, ~equal]
    uneven = max(float((each.amax(-1) - each.amin(-1)).max()) for each in (same, different))
    if not uneven <= _ROUNDING * (1 + float(table.abs().max())):
        raise _error("a table that tells apart more than equal and different", "J [x_i = x_j], as IsingEnergy has")
    coupling = (same[:, 0] - different[:, 0]).expand(len(scopes))
    if bool((coupling < 0).any()):
        raise _error(f"a coupling J = {float(coupling.min()):.3g}", "none below zero: neighbors must like to be equal")
    return scopes, coupling


class FerromagnetTarget(GraphTarget):
    """A graph of pairs that like to be equal.

    Raises:
        GraphError: if it is anything else.
    """

    def __init__(self, graph: FactorGraph) -> None:
        super().__init__(graph)
        require_discrete(self, "SwendsenWang")
        self.log_density = FerromagnetDensity(self, unbatched(graph.log_tables()))  # type: ignore[method-assign]
