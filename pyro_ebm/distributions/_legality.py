"""When may log Z be left out? Only where the energy depends on nothing learned or sampled but its own argument."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch.autograd.graph import Node

from pyro_ebm._core.errors import (
    EnumeratedContextError,
    GuideEnergyError,
    TwoDensitiesError,
    UnnormalizedError,
    UnnormalizedObservationError,
)
from pyro_ebm.distributions._caller import ScoredSite, scored_site

_WAYS_OUT = (
    "Its gradient is missing, and learning without it runs away silently. Ways out: "
    "(1) freeze the energy, energy.requires_grad_(False), if its parameters are not to be learned here; "
    "(2) give log Z, EnergyDistribution(energy, log_normalizer=...): energy.log_partition() where there is a "
    "closed form, or a normaliser, PersistentWalkers() or Exact(); sample_graph(..., normalized=True) for a graph; "
    "(3) train the energy by an objective of its own (NoiseContrastive, ScoreMatching, ...), then freeze it."
)


def check_unnormalized(density: Tensor, arguments: Sequence[Tensor]) -> None:
    """Raise if Pyro is scoring a site whose missing log Z is not a constant.

    Args:
        density: the energy or the unnormalised log density as computed, `(*sample, *batch)`.
        arguments: the values that it is a function of.

    Raises:
        UnnormalizedObservationError: at an observed site, if the density depends on learned or sampled tensors.
        UnnormalizedError: at a latent site, likewise.
    """
    if not density.requires_grad or not torch.is_grad_enabled():
        return
    site = scored_site()
    if site is None:
        return
    others = dependencies(density, arguments, site)
    if not others:
        return
    shapes = ", ".join(str(tuple(other.shape)) for other in others[:3]) + (", ..." if len(others) > 3 else "")
    kind, error = ("observed", UnnormalizedObservationError) if site.is_observed else ("latent", UnnormalizedError)
    raise error(
        f'at {kind} site "{site.name}": got an unnormalised energy that depends on {len(others)} learned or sampled '
        f"tensor(s) (shapes {shapes}), expected none but its own argument, for log Z depends on them too. {_WAYS_OUT}"
    )


def check_one_density(site: ScoredSite | None = None) -> None:
    """Raise if Pyro is scoring an observed site whose value another site scores too.

    Args:
        site: what Pyro is scoring; looked for by default.

    Raises:
        TwoDensitiesError: there.
    """
    site = scored_site() if site is None else site
    if site is not None and site.is_observed and site.same_value is not None:
        raise TwoDensitiesError(
            f'at site "{site.name}": got the value of site "{site.same_value}", expected data: a second density on one '
            "value makes a product, whose log Z is not the sum of theirs. Add the energies first, "
            "EnergyDistribution(e1 + e2), or declare an energy factor among sites: factor(name, energy, value)."
        )


def check_site(batch_shape: Size, event_dim: int, *, exact: bool, has_log_normalizer: bool) -> None:
    """Raise where Pyro scores an energy's site that means something else than it says.

    Args:
        batch_shape: of the density.
        event_dim: of it.
        exact: whether it has an exact log Z.
        has_log_normalizer: whether it has one at all.

    Raises:
        TwoDensitiesError: at an observed site whose value another site scores too.
        GuideEnergyError: in a guide, without an exact log Z.
        EnumeratedContextError: without log Z, where the energy depends on an enumerated site.
    """
    site = scored_site()
    if site is None:
        return
    check_one_density(site)
    if site.in_guide and not exact:
        raise GuideEnergyError(
            f'at site "{site.name}" of a guide: got an energy without an exact log Z, expected a density that can be '
            "evaluated and sampled: an ELBO needs log q, and its gradient. Give log_normalizer=Exact() or a tensor, or "
            "use a flow or an autoguide; to sample a posterior that is an energy, use MCMC."
        )
    if has_log_normalizer:
        return
    inside = site.event_dim - event_dim  # batch dims that to_event made event dims of the site
    for name, dim in site.enumerated.items():
        if -(dim - inside) <= len(batch_shape) and batch_shape[dim - inside] > 1:
            raise EnumeratedContextError(enumerated_context(site.name, name))


def enumerated_context(name: str, context: str) -> str:
    """What is wrong with an unnormalised energy at a site that depends on an enumerated one."""
    return (
        f'at site "{name}": got an unnormalised energy that depends on the discrete site "{context}", which is summed '
        "out, expected one whose log Z is the same for all of its values: it would be dropped from the sum. Give it "
        "log Z, log_normalizer=Exact() or a tensor."
    )


def dependencies(density: Tensor, arguments: Sequence[Tensor], site: ScoredSite) -> list[Tensor]:
    """What is learned or sampled that a density depends on, other than through its arguments."""
    nodes, leaves = _upstream(density, arguments)
    if site.moved is None:
        return list(leaves.values())
    return [value for value in site.moved if value.grad_fn in nodes or id(value) in leaves]


def _upstream(output: Tensor, arguments: Sequence[Tensor]) -> tuple[set[Node], dict[int, Tensor]]:
    """What `output` depends on by autograd, other than through its arguments: graph nodes, and leaf tensors by id."""
    own = {value.grad_fn for value in arguments}
    own_leaves = {id(value) for value in arguments}
    stack: list[Node | None] = [output.grad_fn]
    nodes: set[Node] = set()
    leaves: dict[int, Tensor] = {}
    while stack:
        node = stack.pop()
        if node is None or node in nodes or node in own:
            continue
        nodes.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in own_leaves:
            leaves[id(leaf)] = leaf
        stack.extend(parent for parent, _ in node.next_functions)
    return nodes, leaves
