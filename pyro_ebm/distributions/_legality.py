"""When may log Z be left out? Only where the energy depends on nothing learned or sampled but its own argument."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_ebm._core.errors import UnnormalizedError, UnnormalizedObservationError
from pyro_ebm.distributions._caller import scored_site

_WAYS_OUT = (
    "Its gradient is missing, and learning without it runs away silently. Ways out: "
    "(1) freeze the energy, energy.requires_grad_(False), if its parameters are not to be learned here; "
    "(2) give log Z, EnergyDistribution(energy, log_normalizer=...): energy.log_partition() where there is a "
    "closed form, or a normaliser object; "
    "(3) train the energy by an objective of its own (contrastive divergence, score matching, ...), then freeze it."
)


def check_unnormalized(energy: Tensor, arguments: Sequence[Tensor]) -> None:
    """Raise if Pyro is scoring a site whose missing log Z is not a constant.

    Args:
        energy: the energy as computed, `(*sample, *batch)`.
        arguments: the values that it is the energy of.

    Raises:
        UnnormalizedObservationError: at an observed site, if the energy depends on learned or sampled tensors.
        UnnormalizedError: at a latent site, likewise.
    """
    if not energy.requires_grad or not torch.is_grad_enabled():
        return
    site = scored_site()
    if site is None:
        return
    others = _leaves(energy, arguments)
    if site.moved_by_mcmc:  # MCMC moves only the values: parameters of modules stay where they are
        others = [leaf for leaf in others if not isinstance(leaf, nn.Parameter)]
    if not others:
        return
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in others[:3]) + (", ..." if len(others) > 3 else "")
    observed = site.is_observed and not site.moved_by_mcmc
    kind, error = ("observed", UnnormalizedObservationError) if observed else ("latent", UnnormalizedError)
    raise error(
        f'at {kind} site "{site.name}": got an unnormalised energy that depends on {len(others)} learned or sampled '
        f"tensor(s) (shapes {shapes}), expected none but its own argument, for log Z depends on them too. {_WAYS_OUT}"
    )


def _leaves(output: Tensor, arguments: Sequence[Tensor]) -> list[Tensor]:
    """The leaf tensors that `output` depends on by autograd, other than through its arguments."""
    own = {value.grad_fn for value in arguments}
    own_leaves = {id(value) for value in arguments}
    found: dict[int, Tensor] = {}
    stack, seen = [output.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen or node in own:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in own_leaves:
            found[id(leaf)] = leaf
        stack.extend(parent for parent, _ in node.next_functions)
    return list(found.values())
