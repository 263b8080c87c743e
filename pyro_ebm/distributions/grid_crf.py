"""`GridCRF`: labels of an image's pixels, each of which depends on its neighbours'."""

from __future__ import annotations

from torch import Size, Tensor

from pyro_ebm._core.errors import EnergyShapeError
from pyro_ebm.distributions.graph_distribution import GraphDistribution
from pyro_ebm.energies import TableEnergy
from pyro_ebm.graphs import Elements, FactorGraph


class GridCRF(GraphDistribution):
    """The conditional random field on a lattice, with exact log Z, marginals, mode and draws.

    `p(z) = exp(Σ_p u_p(z_p) + Σ_pq h_pq(z_p, z_q) + Σ_pq v_pq(z_p, z_q)) / Z`, over pixels p, their right and their
    lower neighbours q. As is usual for CRFs it takes *scores*, log-potentials, which are negative energies; -inf
    forbids. They may be learned or sampled, and depend on covariates in any way. The cost is that of tables of
    `K ** (min(H, W) + 1)` entries for each pixel.

    Args:
        unary: scores of the pixels' labels, `(*batch, H, W, K)`.
        horizontal: scores of the labels of a pixel and of the one to its right: `(K, K)` for all pairs alike, or
            broadcastable to `(*batch, H, W - 1, K, K)`.
        vertical: likewise for a pixel and the one below it, `(K, K)` or `(*batch, H - 1, W, K, K)`; by default the
            same as `horizontal`, which then has no dims for pixels of more than size one.
        validate_args: whether values are checked; torch's default.

    Raises:
        EnergyShapeError: if the shapes do not fit.

    >>> import torch
    >>> crf = GridCRF(torch.zeros(5, 4, 6, 2), torch.eye(2))
    >>> crf.batch_shape, crf.event_shape, crf.marginals.shape
    (torch.Size([5]), torch.Size([4, 6]), torch.Size([5, 4, 6, 2]))
    """

    def __init__(
        self,
        unary: Tensor,
        horizontal: Tensor,
        vertical: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if unary.dim() < 3:
            raise EnergyShapeError(
                f"GridCRF: got unary scores of shape {tuple(unary.shape)}, expected (*batch, H, W, K)."
            )
        height, width, states = unary.shape[-3:]
        graph = FactorGraph()
        z = graph.variable("z", num_states=states, shape=(height, width))
        graph.factor(TableEnergy(-unary.flatten(-3, -2), arity=1), z[:])
        if width > 1:
            _couple(graph, "horizontal", horizontal, Size([height, width - 1]), states, z[:, :-1], z[:, 1:])
        if height > 1:
            below = horizontal if vertical is None else vertical
            _couple(graph, "vertical", below, Size([height - 1, width]), states, z[:-1], z[1:])
        super().__init__(graph, validate_args=validate_args)


def _couple(
    graph: FactorGraph, name: str, scores: Tensor, shape: Size, states: int, first: Elements, second: Elements
) -> None:
    pixels = scores.shape[-4:-2]
    if scores.dim() in (0, 1, 3) or scores.shape[-2:] != (states, states):
        fits = False
    else:
        fits = all(size in (1, full) for size, full in zip(pixels, shape, strict=False))
    if not fits:
        raise EnergyShapeError(
            f"GridCRF: got {name} scores of shape {tuple(scores.shape)}, expected ({states}, {states}), or something "
            f"that broadcasts to (*batch, {shape[0]}, {shape[1]}, {states}, {states})."
        )
    if scores.dim() == 2:
        graph.factor(TableEnergy(-scores), first, second)
        return
    each = scores.expand(*scores.shape[:-4], *shape, states, states)
    graph.factor(TableEnergy(-each.flatten(-4, -3), arity=2), first, second)
